"""Who gets in, and what is kept where everybody can read it: told by the processes and by `check` themselves."""

from __future__ import annotations

import pytest

from worker import settings as configuration


@pytest.mark.parametrize("process", ["web", "flower"])
@pytest.mark.parametrize("listen", ["0.0.0.0:18080", "[::]:18080"])
def test_no_page_listens_beyond_loopback_without_a_password(world, process, listen):
    world.tables[process]["listen"] = listen
    done = world.run(process)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        f"{process}.password: username and password are required to listen on {listen}; or listen on 127.0.0.1"
    )
    assert "Traceback" not in done.stderr


def test_a_configuration_with_literal_secrets_that_all_can_read_is_warned_about(tmp_path):
    path = tmp_path / "lastcall.toml"
    table = "vendor = 'spaaza'\nbase_url = 'https://x.example'\naccess_token_id = 'a'\naccess_token_secret = 'b'\n"
    path.write_text(f"[archive]\nbucket = 'exports'\n[sources.a]\n{table}")
    warning = f"{path}: holds literal secrets and is readable by all; chmod 600"
    path.chmod(0o644)
    assert warning in configuration.load(path).secret_warnings()
    path.chmod(0o640)
    assert warning not in configuration.load(path).secret_warnings()
    path.write_text("[archive]\nbucket = 'exports'\n")
    path.chmod(0o644)
    assert configuration.load(path).secret_warnings() == []
