"""Passwords of the containers: made once, kept, reachable by their owner alone, and no others than compose names."""

import base64
import stat
from pathlib import Path

import yaml

from deploy.containers.secret_files import CHOICES, make_secrets

CHECKOUT = Path(__file__).parents[3]


def read(checkout):
    return {path.name: path.read_text() for path in (checkout / ".secrets").iterdir()}


def test_each_secret_is_generated_once_at_random(tmp_path):
    made = make_secrets(tmp_path)
    first = read(tmp_path)

    assert sorted(made) == sorted(first)
    assert make_secrets(tmp_path) == []
    assert read(tmp_path) == first
    made_up = {name: text for name, text in first.items() if name not in CHOICES}
    assert len(set(made_up.values())) == len(made_up)
    assert min(map(len, made_up.values())) >= 44
    assert len(base64.urlsafe_b64decode(first["airflow_fernet_key"])) == 32


def test_only_a_removed_secret_is_regenerated(tmp_path):
    make_secrets(tmp_path)
    first = read(tmp_path)
    for name in ("target_db.loader", "redis_conf"):
        (tmp_path / ".secrets" / name).unlink()

    of_redis = ["celery_broker_url", "celery_result_backend", "redis_conf"]
    assert sorted(make_secrets(tmp_path)) == [*of_redis, "target_db.loader"]
    second = read(tmp_path)
    assert {name for name in first if first[name] != second[name]} == {*of_redis, "target_db.loader"}


def test_alert_destinations_are_empty_until_set_and_then_stay(tmp_path):
    make_secrets(tmp_path)
    assert {read(tmp_path)[name] for name in CHOICES} == {""}
    (tmp_path / ".secrets" / "alert_smtp_url").write_text("smtps://user:password@mail.example")
    make_secrets(tmp_path)

    assert read(tmp_path)["alert_smtp_url"] == "smtps://user:password@mail.example"
    assert read(tmp_path)["alert_webhook_url"] == ""


def test_only_the_owner_enters_the_folder_containers_read_files(tmp_path):
    make_secrets(tmp_path)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / ".secrets").iterdir()}

    assert stat.S_IMODE((tmp_path / ".secrets").stat().st_mode) == 0o700
    assert {modes.pop(name) for name in CHOICES} == {0o644}  # its owner writes them
    assert set(modes.values()) == {0o444}


def test_user_lines_in_the_environment_file_are_kept(tmp_path):
    (tmp_path / ".env").write_text("SEED_SCALE=3")
    make_secrets(tmp_path)
    make_secrets(tmp_path)

    lines = (tmp_path / ".env").read_text().splitlines()
    assert lines[:2] == ["SEED_SCALE=3", "SECRETS_FOLDER=.secrets"]
    assert [line.partition("=")[0] for line in lines[2:]] == ["COMPOSE_PROJECT_NAME"]


def test_each_checkout_has_a_project_of_its_own(tmp_path):
    checkouts = [tmp_path / name for name in ("one", "other", "older")]
    for checkout in checkouts:
        checkout.mkdir()
    (checkouts[2] / ".secrets").mkdir()  # its containers were made under the first name
    for checkout in checkouts:
        make_secrets(checkout)
    names = [(checkout / ".env").read_text().rpartition("=")[2].strip() for checkout in checkouts]

    assert len(set(names)) == 3
    assert all(name.startswith("tidemark-") for name in names[:2])
    assert names[2] == "tidemark"
    (checkouts[0] / ".env").unlink()
    make_secrets(checkouts[0])
    assert (checkouts[0] / ".env").read_text().rpartition("=")[2].strip() == names[0]


def test_redis_and_its_clients_have_the_same_password(tmp_path):
    make_secrets(tmp_path)
    found = read(tmp_path)
    password = found["redis_conf"].removeprefix("requirepass ")

    assert found["celery_broker_url"] == f"redis://:{password}@redis:6379/0"
    assert found["celery_result_backend"] == f"redis://:{password}@redis:6379/1"


def test_compose_names_the_generated_secrets(tmp_path):
    make_secrets(tmp_path)
    named = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())["secrets"]

    assert sorted(named) == sorted([*read(tmp_path), "pip_conf"])
    assert {name: entry["file"].rpartition("/")[2] for name, entry in named.items() if name != "pip_conf"} == {
        name: name for name in named if name != "pip_conf"
    }
