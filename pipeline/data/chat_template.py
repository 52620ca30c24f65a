"""The chat template of a base model: text passes through it as it is."""


def pass_through(adds_bos: bool) -> str:
    """A Jinja template for users who prompt the model with one: it gives the ids that evaluations use by default.

    The pipeline itself does not use it: the data rows of post-training hold token ids (`pipeline/stages/grpo.py`).

    Args:
        adds_bos: the tokenizer begins a text with its beginning-of-text token, so that the template has to as well.
    """
    text = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return ("{{ bos_token }}" if adds_bos else "") + text
