"""The service's HTTP interface as types, and its client: the contract that both sides of logitcask share."""
