"""The teacher service: capture inside the engine, durable jobs, HTTP."""
