"""A teacher that is served elsewhere: OpenAI's completions with vLLM's additions, or SGLang's own interface."""
