"""The teacher on vLLM: capture runs inside the engine, as a general plugin."""
