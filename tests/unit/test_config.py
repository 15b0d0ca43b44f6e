"""Settings: layers, types, origins; and what one broken file may not break."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcwrap import config, paths
from hpcwrap.environment import Mount
from hpcwrap.errors import SiteError, UserError


class Site:
    """A directory like /etc/hpcwrap."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = str(directory / "hpcwrap.yaml")
        self.write("hpcwrap.yaml", "")

    def write(self, name: str, text: str) -> str:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return str(path)

    def environment(self, name: str, text: str = "image: debian:12\n") -> str:
        return self.write(f"environments.d/{name}.yaml", text)

    def load(self) -> config.Config:
        return config.load_config(self.file)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_the_table_and_settings_have_the_same_names() -> None:
    assert tuple(row.name for row in config.ROWS) == config.Settings._fields


def test_without_a_word_every_setting_has_its_default(site: Site) -> None:
    loaded = site.load()
    assert loaded.settings == config.Settings()
    assert set(loaded.origins.values()) == {"default"}
    assert loaded.environments == {}


def test_a_value_knows_its_file_and_line(site: Site) -> None:
    site.write("hpcwrap.yaml", "\nstore: /lustre/hpcwrap\npull: never\n")
    loaded = site.load()
    assert loaded.settings.store == "/lustre/hpcwrap"
    assert loaded.settings.pull == "never"
    assert loaded.origins["store"] == f"{site.file}:2"
    assert loaded.origins["pull"] == f"{site.file}:3"
    assert loaded.origins["log"] == "default"


def test_drop_ins_win_in_sorted_order(site: Site) -> None:
    site.write("hpcwrap.yaml", "store: /a\nroot_size: 1m\nlog: /a.log\n")
    site.write("conf.d/20-b.yaml", "store: /c\n")
    last = site.write("conf.d/30-c.yml", "root_size: 3m\n")
    site.write("conf.d/10-a.yaml", "store: /b\nroot_size: 2m\n")
    site.write("conf.d/40-old.yaml.rpmnew", "store: /no\n")
    site.write("conf.d/.hidden.yaml", "store: /no\n")
    loaded = site.load()
    assert loaded.settings[:1] == ("/c",)
    assert (loaded.settings.root_size, loaded.origins["root_size"]) == ("3m", f"{last}:1")
    assert loaded.settings.log == "/a.log"


def test_mounts_and_defaults_add_up_over_the_layers(site: Site) -> None:
    for name in ("a", "b", "c"):
        site.environment(name)
    site.write(
        "hpcwrap.yaml",
        "mounts: [/sw, /old /data]\n"
        "defaults: {slurm: {partition: {gpu: a, cpu: b}, account: {chem: c}}}\n",
    )
    drop_in = site.write(
        "conf.d/x.yaml", "mounts: [/new /data]\ndefaults: {slurm: {partition: {gpu: none}}}\n"
    )
    loaded = site.load()
    assert loaded.settings.mounts == (
        Mount("/sw", "/sw", "bind", (), f"{site.file}:1"),
        Mount("/new", "/data", "bind", (), f"{drop_in}:1"),
    )
    assert loaded.settings.defaults == {
        **config.NO_DEFAULTS,
        "slurm": {"partition": {"gpu": "none", "cpu": "b"}, "account": {"chem": "c"}},
    }
    assert loaded.origins["defaults.slurm.partition.gpu"] == f"{drop_in}:2"
    assert loaded.origins["defaults.slurm.account.chem"] == f"{site.file}:2"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("stor: /x", "unknown key stor"),
        ("store: x", "store must be an absolute path without .., not 'x'"),
        ("store: /a/../b", "store must be an absolute path without .."),
        ("store: 7", "store must be text"),
        ("store:", "store must be text, not nothing"),
        ("image_user: root", "image_user must not be root"),
        ("image_user: 'no body'", "image_user must be the name of an account"),
        ("squashfs_compression: zip", "must be zstd, gzip, lz4 or xz, not 'zip'"),
        ("squashfs_level: 0", "squashfs_level must be 1 to 22, not 0"),
        ("squashfs_level: 23", "squashfs_level must be 1 to 22, not 23"),
        ("squashfs_level: 19\nsquashfs_compression: gzip", "must be 1 to 9 for gzip, not 19"),
        ("pull: often", "must be never, missing, always, hourly, daily or weekly, not 'often'"),
        ("cache_size: large", "cache_size must be a size such as 50g, not 'large'"),
        ("cache_size: 5%", "cache_size must be a size such as 50g, not '5%'"),
        ("store_size: -1", "store_size must be a size such as 50g, not '-1'"),
        ("cache: var/cache", "cache must be an absolute path without .., not 'var/cache'"),
        ("allow_images: docker.io/**", "allow_images must be a list, not text (docker.io/**)"),
        ("allow_images: ['a b']", "must hold patterns without blanks, not 'a b'"),
        ("pull_timeout: 15m", "pull_timeout must be a whole number, not text (15m)"),
        ("mounts: /data", "mounts must be a list, not text (/data)"),
        ("mounts: [data]", "cannot use the mount 'data'"),
        ("mounts: [/a /x, /b /x/]", "/x/ is mounted twice"),
        ("mount_home: maybe", "mount_home must be true or false, not text (maybe)"),
        ("root_size: big", "root_size must be a size such as 16m, not 'big'"),
        ("root_size: 16", "root_size must be text, and 16 is read as a number"),
        ("allow_none: 1", "allow_none must be true or false, not a number (1)"),
        ("defaults: {slrum: {}}", "unknown key defaults.slrum"),
        ("defaults: {slurm: {queue: {}}}", "unknown key defaults.slurm.queue"),
        ("defaults: {slurm: {partition: {gpu: Cuda}}}", "must be the name of an environment"),
        ("defaults: {slurm: {partition: {gpu: 12}}}", "must be text, and 12 is read as a number"),
        ("defaults: {slurm: {partition: [gpu]}}", "must be a mapping, not a list"),
        ("store: [", "cannot read the YAML"),
    ],
)
def test_a_bad_setting_is_the_sites_error_with_file_and_line(
    site: Site, text: str, reason: str
) -> None:
    site.write("hpcwrap.yaml", text)
    with pytest.raises(SiteError) as caught:
        site.load()
    assert caught.value.message.startswith(f"{site.file}:")
    assert caught.value.message[len(site.file) + 1].isdigit()
    assert reason in caught.value.message


def test_a_misspelt_setting_gets_a_hint(site: Site) -> None:
    site.write("conf.d/a.yaml", "pul: never\n")
    with pytest.raises(SiteError) as caught:
        site.load()
    assert caught.value.hint == "did you mean pull?"


def test_empty_lists_and_mappings_are_as_if_they_were_not_there(site: Site) -> None:
    site.write("hpcwrap.yaml", "mounts:\ndefaults:\n  slurm:\n    partition:\n")
    assert site.load().settings == config.Settings()


def test_a_named_settings_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"cannot read .*gone\.yaml: No such file"):
        config.load_config(str(tmp_path / "gone.yaml"))


def test_the_installed_settings_file_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "CONFIG_FILE", str(tmp_path / "hpcwrap.yaml"))
    monkeypatch.delenv("HPCWRAP_CONFIG", raising=False)
    assert config.load_config().settings == config.Settings()


def test_the_variable_names_a_file_and_the_argument_wins(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = site.write("other.yaml", "log: /other\n")
    monkeypatch.setenv("HPCWRAP_CONFIG", other)
    assert config.load_config().settings.log == "/other"
    assert config.load_config(site.file).settings.log == config.Settings().log


def test_one_broken_environment_does_not_stop_the_others(site: Site) -> None:
    site.environment("good")
    broken = site.environment("bad", "imge: debian:12\n")
    loaded = site.load()
    assert loaded.environment("good").image == "debian:12"
    assert list(loaded.problems()) == ["bad"]
    with pytest.raises(SiteError) as caught:
        loaded.environment("bad")
    assert caught.value.sentence() == f"{broken}:1: unknown key imge (did you mean image?)"


def test_an_unknown_environment_is_the_users_error_with_a_hint(site: Site) -> None:
    site.environment("debian-12")
    with pytest.raises(UserError) as caught:
        site.load().environment("debain-12")
    assert caught.value.sentence() == (
        "there is no environment 'debain-12' (did you mean debian-12?)"
    )
    with pytest.raises(UserError, match="'xyz'"):
        site.load().environment("xyz")


def test_a_default_without_its_environment_is_broken_where_it_is_used(site: Site) -> None:
    site.environment("good")
    site.write("hpcwrap.yaml", "defaults:\n  slurm:\n    partition:\n      gpu: cuda\n")
    loaded = site.load()
    assert loaded.environment("good").name == "good"
    with pytest.raises(SiteError) as caught:
        loaded.environment("cuda")
    assert caught.value.message == (
        f"{site.file}:4: defaults.slurm.partition.gpu names the environment cuda,"
        " which does not exist"
    )
    assert list(loaded.problems()) == ["cuda"]


def test_a_default_may_be_none(site: Site) -> None:
    site.write("hpcwrap.yaml", "defaults: {slurm: {partition: {login: none}}}\n")
    assert site.load().problems() == {}


def test_one_environment_is_read_without_the_others(site: Site) -> None:
    site.write("hpcwrap.yaml", "defaults: {slurm: {partition: {gpu: cuda}}}\nlog: /l\n")
    site.environment("base", "image: debian:12\n")
    site.environment("mine", "base: base\n")
    site.environment("bad", ": : :")
    watched = []
    settings, mine = config.load_one("mine", site.file, watched.append)
    assert (settings.log, mine.image) == ("/l", "debian:12")
    assert [os.path.relpath(path, site.directory) for path in watched] == [
        "hpcwrap.yaml",
        "conf.d",
        "hpcwrap.yaml",
        "environments.d/mine.yaml",
        "environments.d/base.yaml",
    ]
    with pytest.raises(SiteError, match=r"hpcwrap\.yaml:1: defaults\.slurm\.partition\.gpu"):
        config.load_one("cuda", site.file, config.unwatched)
    with pytest.raises(UserError, match=r"no environment '\.\./mine'"):
        config.load_one("../mine", site.file, config.unwatched)
    with pytest.raises(UserError, match="there is no environment 'none'"):
        config.load_one("none", site.file, config.unwatched)


def test_patterns_add_up_and_sizes_may_be_numbers(site: Site) -> None:
    site.write("hpcwrap.yaml", "allow_images: [a/**, b/*]\nstore_size: 0\ncache: ''\n")
    site.write("conf.d/more.yaml", "allow_images: [b/*, 'sif:/apps/*']\ncache_size: 2t\n")
    settings = site.load().settings
    assert settings.allow_images == ("a/**", "b/*", "sif:/apps/*")
    assert (settings.store_size, settings.cache, settings.cache_size) == ("0", "", "2t")
