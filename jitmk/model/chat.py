"""Chat templates: from messages to the text of a prompt, as the checkpoint's own template writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2.exceptions import SecurityError, TemplateSyntaxError

from jitmk.errors import GenerationError, JitmkError, TokenizerError
from jitmk.model.files import read_json
from jitmk.model.template_sandbox import Meter, SandboxEnvironment, TemplateRefusal, metered

_TEMPLATE_FILE = "chat_template.jinja"
_LEGACY_TEMPLATE_FILE = "chat_template.json"
_MAX_SOURCE = 2**20


def read_chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """A model's chat templates by name; most have one, "default", and some another for tools, "tool_use".

    chat_template.jinja outranks chat_template.json, and that tokenizer_config.json.

    Raises:
        TokenizerError: a template file cannot be read, or is no template.
    """
    path, legacy = folder / _TEMPLATE_FILE, folder / _LEGACY_TEMPLATE_FILE
    if path.is_file():
        try:
            return {"default": path.read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{path} cannot be read: {error}") from error
    found, where = tokenizer_config.get("chat_template"), "tokenizer_config.json"
    if legacy.is_file():
        found, where = read_json(legacy, TokenizerError).get("chat_template"), _LEGACY_TEMPLATE_FILE
    if found is None:
        return {}
    if isinstance(found, str):
        return {"default": found}
    try:
        templates = {entry["name"]: entry["template"] for entry in found}
        good = all(isinstance(text, str) for pair in templates.items() for text in pair)
    except (TypeError, KeyError):
        good = False
    if not good:
        raise TokenizerError(f"{folder / where}: chat_template must be a template, or a list of names and templates")
    return templates


class ChatTemplate:
    """The chat templates of a model. They are untrusted code, and run in a sandbox with bounds on time and size.

    Args:
        templates: sources by name, as `read_chat_template` returns them.
        special_tokens: variables such as bos_token, by which templates name them.
    """

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._templates = dict(templates)
        self._special_tokens = dict(special_tokens)
        self._compiled: dict[str, Any] = {}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt's text, special tokens included (so encode it without adding them again).

        Args:
            messages: a dict each with "role", "content" and whatever else the template knows.
            add_generation_prompt: end with the beginning of the assistant's answer.
            tools: JSON schemas of functions that the model may call.
            documents: texts for retrieval, for templates that know them.
            variables: what else the template is to see, such as enable_thinking=False.

        Raises:
            GenerationError: the messages are malformed, or the template refuses them.
            TokenizerError: there is no template, or it fails or oversteps the sandbox.
        """
        data = {
            "messages": _check_messages(messages),
            "tools": _plain(tools, "tools"),
            "documents": _plain(documents, "documents"),
            "add_generation_prompt": add_generation_prompt,
            **{name: _plain(value, name) for name, value in variables.items()},
        }
        name = self._choose(with_tools=bool(tools))
        try:
            with metered(Meter(Meter(10**9).weigh(data))):
                text: str = self._template(name).render(self._special_tokens | data)
        except TemplateRefusal as error:
            raise GenerationError(f"the model's chat template refuses these messages: {error}") from None
        except TemplateSyntaxError as error:
            raise TokenizerError(f"the chat template {name!r} is malformed in line {error.lineno}: {error}") from error
        except SecurityError as error:
            raise TokenizerError(f"the chat template {name!r} was stopped: {error}") from error
        except JitmkError:
            raise
        except Exception as error:
            # A template can raise whatever Python's operators and methods raise.
            raise TokenizerError(
                f"the chat template {name!r} failed with {type(error).__name__}: {error}; the messages may lack "
                "something that it expects"
            ) from error
        return text

    def _choose(self, with_tools: bool) -> str:
        if not self._templates:
            raise TokenizerError(
                "this model has no chat template: pass the prompt as text or token ids, in the form that it expects"
            )
        if with_tools and "tool_use" in self._templates:
            return "tool_use"
        if "default" in self._templates:
            return "default"
        raise TokenizerError(f"the model has no default chat template, only {', '.join(sorted(self._templates))}")

    def _template(self, name: str) -> Any:
        """The compiled template. Compiled when first used, so that a model with a broken one still loads."""
        if name not in self._compiled:
            source = self._templates[name]
            if len(source) > _MAX_SOURCE:
                raise TokenizerError(
                    f"the chat template {name!r} has {len(source)} characters: more than {_MAX_SOURCE}"
                )
            self._compiled[name] = SandboxEnvironment().compile_guarded(source)
        return self._compiled[name]


def _check_messages(messages: Any) -> list[Any]:
    """A copy of the messages in plain JSON types."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise GenerationError(f"messages must be a list of dicts with role and content, not {type(messages).__name__}")
    if not messages:
        raise GenerationError("messages is empty: pass at least one, such as {'role': 'user', 'content': 'Hello'}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise GenerationError(f"messages[{index}] must be a dict with a role, such as 'user', and content")
    plain: list[Any] = _plain(messages, "messages")
    return plain


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """`value` in plain JSON types: an object with methods would hand the template more than data."""
    if depth > 100:
        raise GenerationError(f"{where} is nested too deeply")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise GenerationError(f"{where} has keys that are not strings")
        return {str.__str__(key): _plain(item, f"{where}[{key!r}]", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    raise GenerationError(f"{where} is a {type(value).__name__}, but chat data must be text, numbers, lists and dicts")
