"""`tunekit push` against a Hub of its own on localhost, with the real client: what arrives, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hub_for_tests import LARGE, serving

TOKEN = "hf_" + "aB3" * 11  # made up, and not whole in this file
SENT = {
    "README.md": b"---\nlibrary_name: peft\n---\n\n# A model\n",
    "adapter_config.json": b'{\n  "base_model_name_or_path": "org/base"\n}\n',
    "adapter_model.safetensors": bytes(range(256)) * (2 * LARGE // 256),
    "chat_template.jinja": b"{{ messages }} /v1/chat/completions\n",
    "sub/adapter_model.safetensors": b"\x01\x02 small\n",
    "tokenizer.json": b'{"vocab": {"/home/x/y": 1, "://":2,"a@b": 3}}\n',
}


@pytest.fixture
def hub():
    with serving() as made:
        yield made


@pytest.fixture
def run(tmp_path):
    """The folder of a run that is done."""
    folder = tmp_path / "runs" / "mine"
    for name, content in SENT.items():
        (folder / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "model" / name).write_bytes(content)
    record = {"method": "sft", "status": "done", "created": "2026-03-01T12:00:00Z"}
    (folder / "record.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def push(hub, run, tmp_path):
    """Runs the command; whatever it shows must not hold the token."""

    def call(*words, to="org/name", **variables):
        given = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path / "home")}
        given |= {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "NO_COLOR": "1", "COLUMNS": "200"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment = kept | {name: value for name, value in (given | variables).items() if value is not None}
        command = [sys.executable, "-m", "tunekit", "push", str(run), "--to", to, *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        assert TOKEN not in done.stdout + done.stderr
        assert "aB3aB3" not in done.stdout + done.stderr
        return done

    return call


def asked(hub):
    return [line for line in hub.asked if "agent" not in line[1]]


def test_without_yes_it_is_shown_and_nobody_is_asked(hub, push):
    shown = push()
    assert shown.returncode == 0, shown.stderr
    assert f"{hub.url}/org/name, branch main, private" in shown.stdout
    assert all(name in shown.stdout for name in SENT)
    total = sum(len(content) for content in SENT.values())
    assert f"{total / 1000:.3g} kB  in 6 files" in shown.stdout
    assert "nothing was sent; add --yes" in shown.stdout
    assert hub.asked == []
    assert "branch v2, public" in push("--public", "--revision", "v2").stdout


def test_every_byte_arrives_in_one_commit(hub, push):
    done = push("--yes", "--message", "first")
    assert done.returncode == 0, done.stderr
    assert hub.files("org/name") == SENT
    repo = hub.repos["org/name"]
    assert (repo["private"], repo["messages"]) == (True, ["first"])
    assert f"sent: {hub.url}/org/name/commit/{repo['branches']['main']}" in done.stdout
    # the large file went by LFS and was verified; the small one of that suffix did not
    large = SENT["adapter_model.safetensors"]
    assert list(hub.lfs.values()) == [large] and [one["size"] for one in hub.verified] == [len(large)]
    login = {head.get("authorization", head.get("Authorization")) for head, (method, path) in zip(
        hub.headers, hub.asked, strict=True) if not path.startswith("/lfs/") and "agent" not in path}  # fmt: skip
    assert login == {f"Bearer {TOKEN}"}  # the client's own way, from HF_TOKEN


def test_a_token_of_hf_auth_login_is_used(hub, push, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(TOKEN)
    assert push("--yes", HF_TOKEN=None).returncode == 0
    assert hub.files("org/name") == SENT


def test_the_same_again_changes_nothing(hub, push):
    assert push("--yes", "--public").returncode == 0
    before = dict(hub.repos["org/name"]["branches"])
    assert hub.repos["org/name"]["private"] is False
    again = push("--yes", "--public")
    assert again.returncode == 0, again.stderr
    assert hub.repos["org/name"]["branches"] == before


def test_another_branch_is_made_and_holds_the_model_alone(hub, push):
    hub.make("org/name", old__bin=b"old")
    assert push("--yes", "--revision", "v2").returncode == 0
    assert hub.files("org/name", "v2") == SENT
    assert hub.files("org/name") == {"old.bin": b"old"}


@pytest.mark.parametrize("held", [{"old__bin": b"old"}, {"README__md": b"# Somebody's\n"}])
def test_other_content_is_kept_unless_it_is_to_be_replaced(hub, push, held):
    hub.make("org/name", **held)
    before = hub.files("org/name")
    refused = push("--yes")
    assert refused.returncode == 2
    assert f"the branch holds other content: {next(iter(before))}" in refused.stderr
    assert "--replace" in refused.stderr and "org/name, branch main" in refused.stderr
    assert hub.files("org/name") == before
    assert push("--yes", "--replace").returncode == 0
    assert hub.files("org/name") == SENT


@pytest.mark.parametrize(("there", "words"), [(False, []), (True, ["--public"])])
def test_a_repository_of_another_visibility_is_refused(hub, push, there, words):
    hub.make("org/name", private=there)
    refused = push("--yes", *words)
    assert refused.returncode == 2
    assert "it is private, not public" in refused.stderr if there else "it is public, not private" in refused.stderr
    assert hub.files("org/name") == {}


FAULTS = [
    ({("GET", "/api/models"): 401, ("POST", "/create"): 401}, "does not accept the login", "hf auth login"),
    ({("POST", "/create"): 403}, "may not write there", "write permission"),
    ({("POST", "/create"): 409}, "this login does not see it", "name another one"),
    ({("POST", "/commit/"): 403}, "may not write there", "write permission"),
    ({("POST", "/commit/"): 412}, "somebody else wrote", "push again"),
    ({("POST", "/commit/"): 500}, "answered with an error (500)", "push again"),
    ({("POST", "/commit/"): "cut"}, "could not be reached, or the upload broke off", "push again"),
    ({("GET", "/api/models"): "cut"}, "could not be reached, or the upload broke off", "push again"),
    ({("PUT", "/lfs/"): 403}, "may not write there", "write permission"),
]


IDS = [" ".join(f"{method} {path} {fault}" for (method, path), fault in faults.items()) for faults, *_ in FAULTS]


@pytest.mark.parametrize(("faults", "what", "fix"), FAULTS, ids=IDS)
def test_what_goes_wrong_on_the_way_is_one_block(hub, push, faults, what, fix):
    hub.faults = faults
    failed = push("--yes", "--debug")
    assert failed.returncode == 4, failed.stderr
    block = failed.stderr[failed.stderr.rindex("error: "):]
    assert what in block and fix in block and "org/name" in block
    assert not hub.repos or hub.files("org/name") == {}
    hub.faults = {}
    assert push("--yes").returncode == 0  # what was left behind does not stand in the way
    assert hub.files("org/name") == SENT


@pytest.mark.slow  # the client tries it again for 20 seconds
def test_a_connection_that_breaks_in_the_middle_of_a_large_file(hub, push):
    hub.faults = {("PUT", "/lfs/"): "cut"}
    failed = push("--yes")
    assert failed.returncode == 4
    assert "the upload broke off" in failed.stderr and "push again" in failed.stderr
    assert hub.files("org/name") == {}


def test_no_hub_at_all(push):
    failed = push("--yes", HF_ENDPOINT="http://127.0.0.1:9")
    assert failed.returncode == 4
    assert "could not be reached" in failed.stderr


def test_what_does_not_arrive_whole_is_named(hub, push):
    hub.lose = "adapter_config.json"
    failed = push("--yes")
    assert failed.returncode == 4
    assert "does not hold this file as it was sent" in failed.stderr and "adapter_config.json" in failed.stderr


def test_nobody_logged_in(hub, push):
    refused = push("--yes", HF_TOKEN=None)
    assert refused.returncode == 4
    assert "nobody is logged in" in refused.stderr and "hf auth login" in refused.stderr
    assert asked(hub) == []


def test_offline_is_respected(hub, push):
    refused = push("--yes", HF_HUB_OFFLINE="1")
    assert refused.returncode == 4
    assert "HF_HUB_OFFLINE is set" in refused.stderr
    shown = push(HF_HUB_OFFLINE="1")
    assert shown.returncode == 0 and "HF_HUB_OFFLINE is set: it could not be" in shown.stdout
    assert hub.asked == []


@pytest.mark.parametrize("status", ["running", "failed", "stopped"])
def test_a_run_that_is_not_done_is_refused(hub, push, run, status):
    record = json.loads((run / "record.json").read_text()) | {"status": status}
    (run / "record.json").write_text(json.dumps(record))
    refused = push("--yes")
    assert refused.returncode == 2
    assert f"its record says '{status}'" in refused.stderr and "tunekit resume" in refused.stderr
    assert hub.asked == []


@pytest.mark.parametrize("name", ["name", "a/b/c", "org/na me", "org/a--b", "../x"])
def test_a_name_that_is_none_is_refused(hub, push, name):
    assert push("--yes", to=name).returncode == 2
    assert hub.asked == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("README.md", f"use {TOKEN}"),
        ("README.md", "see {home}/models/q"),
        ("chat_template.jinja", "hunter2-hunter2"),
        ("adapter_config.json", '{{"base_model_name_or_path": "/mnt/share/q"}}'),
        ("adapter_config.json", '{{"base_model_name_or_path": "{home}/q"}}'),
        ("tokenizer_config.json", '{{"name_or_path": "{home}/q"}}'),
        ("tokenizer.json", f'{{{{"{TOKEN}": 1}}}}'),
        ("LICENSE", "https://ada:pw@host.org/x"),
    ],
)
def test_private_text_is_not_sent(hub, push, run, tmp_path, file, line):
    (run / "model" / file).write_text("\n\n" + line.format(home=tmp_path / "home") + "\n")
    refused = push("--yes", MY_API_KEY="hunter2-hunter2")
    assert refused.returncode == 2, refused.stdout
    assert f"model/{file}:3" in refused.stderr.replace("\n", "") and "a secret, or a path" in refused.stderr
    assert "hunter2" not in refused.stderr
    assert hub.asked == []


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "modeling_own.py", ".env", "notes.pkl"])
def test_what_is_no_file_of_a_model_is_refused(hub, push, run, name):
    (run / "model" / name).write_bytes(b"x")
    (run / "model" / "link.json").symlink_to("/etc/passwd")
    refused = push("--yes")
    assert refused.returncode == 2
    assert name in refused.stderr and "not a file of a model" in refused.stderr
    assert "a link is not sent" in refused.stderr  # all at once
    assert hub.asked == []


def test_a_folder_without_weights_is_refused(push, run):
    for path in (run / "model").rglob("*.safetensors"):
        path.unlink()
    refused = push("--yes")
    assert refused.returncode == 2 and "there are no weights in it" in refused.stderr
