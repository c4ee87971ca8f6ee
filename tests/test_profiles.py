"""Profiles are complete and consistent, and the base model is found, downloaded or asked for."""

import sys
import types
from dataclasses import fields

import pytest

from ticketlib.paths import project_root
from ticketlib.profiles import PROFILES, get_profile, locate_base


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_profiles_are_consistent(profile):
    assert get_profile(profile.name) is profile
    assert profile.global_batch_size % profile.micro_batch_size == 0
    assert profile.devices % profile.expert_parallel == 0
    needed = [
        field.name
        for field in fields(profile)
        if field.name not in ("parity_layers", "pack_tokens")
    ]
    assert all(getattr(profile, name) for name in needed)


def test_unknown_profile_is_named_with_what_is_accepted():
    with pytest.raises(ValueError, match='Accepted: tiny.*Did you mean "gpt-oss-20b"'):
        get_profile("gpt-oss-20")


def test_shipped_base_is_found_from_the_notebooks_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(project_root() / "notebooks")
    folder = locate_base(get_profile("tiny"), tmp_path)
    assert folder == project_root() / "data" / "tiny-gpt-oss"


def test_own_folder_is_used_and_an_empty_one_refused(tmp_path):
    (tmp_path / "config.json").touch()
    assert locate_base(get_profile("gpt-oss-20b"), tmp_path / "x", str(tmp_path)) == tmp_path
    with pytest.raises(FileNotFoundError, match="Set base_model to a folder"):
        locate_base(get_profile("gpt-oss-20b"), tmp_path, str(tmp_path / "none"))


def test_download_asks_for_weights_config_and_tokenizer_only(tmp_path, monkeypatch):
    """The hub cannot be asked in a test; a stand-in filters OpenAI's file list as the hub does."""
    from huggingface_hub.utils import filter_repo_objects

    repository = [
        "config.json",
        "generation_config.json",
        "chat_template.jinja",
        "model-00000-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "README.md",
        "original/config.json",
        "original/model.safetensors",
        "original/dtypes.json",
        "metal/model.bin",
    ]

    def snapshot_download(repo_id, *, local_dir, allow_patterns, ignore_patterns):
        assert repo_id == "openai/gpt-oss-20b"
        for name in filter_repo_objects(
            repository, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
            (local_dir / name).touch()

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    folder = locate_base(get_profile("gpt-oss-20b"), tmp_path)
    assert folder == tmp_path / "openai" / "gpt-oss-20b"
    assert sorted(path.name for path in folder.rglob("*")) == sorted(repository[:8])
