"""Where a checkpoint lies: a folder, or a copy of a repository of the Hugging Face hub."""

import pathlib
import re
from typing import Any

PATTERNS = ('*.json', '*.safetensors', '*.jinja', '*.model', '*.txt')  # weights, config, tokenizer; no other formats


def find_folder(path: str | pathlib.Path) -> pathlib.Path:
    """Returns the local folder of a checkpoint; what is no folder is taken for a repository and downloaded once.

    Args:
        path: a folder, or 'owner/name' on the hub.

    Raises:
        ValueError: there is no such folder, and no such repository in the local cache or within reach.
    """
    folder = pathlib.Path(path).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r'[\w-][\w.-]*/[\w.-]+', str(path)):
        raise ValueError(f'{path} is neither a folder nor the name of a repository on the hub (owner/name)')
    import huggingface_hub

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(str(path), allow_patterns=list(PATTERNS)))
    except Exception as e:  # whatever the network or the hub's client throws
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip('.')
        raise ValueError(
            f'{path} is no local folder, and fetching it from the hub failed: {reason}. Offline, download it elsewhere '
            f'(`hf download {path} --local-dir DIR`) and give DIR'
        ) from e


def load_tokenizer(path: str | pathlib.Path) -> Any:
    """Returns the tokenizer of a checkpoint, as transformers reads it.

    Raises:
        ValueError: there is no such checkpoint (see ``find_folder``), or no tokenizer in it.
    """
    folder = find_folder(path)
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder)
    except Exception as e:  # whatever transformers makes of half a folder
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip('.')
        raise ValueError(
            f'{folder} has no tokenizer that transformers can read: {reason}. Copy tokenizer.json and '
            'tokenizer_config.json of the model there'
        ) from e
