"""The contract between teacher and trainer: records, capture specs, identities, and the cask that holds them."""
