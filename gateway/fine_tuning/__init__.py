"""`/v1/fine_tuning/jobs`: the trainer's jobs, as OpenAI's clients ask for them."""
