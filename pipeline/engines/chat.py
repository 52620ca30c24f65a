"""The chat template of a base model: text passes through it as it is."""


def pass_through(adds_bos: bool) -> str:
    """A Jinja template with which verl, which insists on one, prompts with exactly the ids that evaluations use.

    Args:
        adds_bos: the tokenizer begins a text with its beginning-of-text token, so that the template has to do so too.
    """
    text = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return ("{{ bos_token }}" if adds_bos else "") + text
