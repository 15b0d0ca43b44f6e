"""submit/slurm.lua in every Lua of this machine, with tables that hpcwrap makes."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from hpcwrap.config import Config, Settings
from hpcwrap.environment import Environment
from hpcwrap.errors import SiteError
from hpcwrap.schedulers.slurm_table import Accounts, lua_literal, render_table

FILTER = pathlib.Path(__file__).parents[2] / "submit" / "slurm.lua"
LUAS = [name for name in ("lua5.1", "lua5.3", "lua5.4") if shutil.which(name)]
DIGEST = "sha256:" + "d" * 64
OLD = "sha256:" + "0" * 64
NEVER = "sha256:" + "e" * 64
PIN = f"debian-12@{DIGEST}"
NOW = int(time.time())
ALICE, BOB = 2001, 2002
DENIED = 2002

IMAGES = [
    "docker://debian:12",
    "ghcr.io/a/b:1",
    "registry:5000/team/x@" + DIGEST,
    "/home/alice/x.sif",
    "sif:/home/alice/x.sif",
    "docker-daemon:x:1",
]

BROKEN_TABLES: List[Optional[str]] = [
    None,
    "",
    "return 7",
    "return {",
    "return { version = 99 }",
    "return os.exit(0)",
    "return { version = 1 }",
    "return { version = 2 }",
    "\x1bLua",
]

DRIVER = """
local said, logged, noted = {}, {}, {}
slurm = { SUCCESS = 0, ERROR = -1, ESLURM_ACCESS_DENIED = 2002 }
function slurm.log_user(format, ...) said[#said + 1] = string.format(format, ...) end
function slurm.log_error(format, ...) logged[#logged + 1] = string.format(format, ...) end
function slurm.log_info(format, ...) noted[#noted + 1] = string.format(format, ...) end
local function strict(fields)
    local written = {}
    return setmetatable({}, {
        __index = function(_, key) return fields[key] end,
        __newindex = function(_, key, value)
            assert(type(value) == "string", "bad argument to " .. key)
            assert(key == "comment" or key == "container" or key == "admin_comment", key)
            fields[key] = value ~= "" and value or nil
        end,
    })
end
local function show(name, value) print(name .. "=" .. tostring(value)) end
local call = dofile(arg[1])
local hpcwrap = dofile(arg[2])(arg[3])
local steps = 0
debug.sethook(function() steps = steps + 1 end, "", 1)
local code = hpcwrap[call.verb](strict(call.job), call.verb == "submit" and call.partitions
    or call.record, call.job.user_id, call.job.user_id)
debug.sethook()
io.stderr:write(steps, "\\n", table.concat(noted, "\\n"))
show("code", code)
for _, name in ipairs({ "comment", "container", "admin_comment" }) do
    show(name, call.job[name])
end
show("mark", (call.job.environment or {}).SLURM_SPANK_HPCWRAP_CONTAINER)
show("said", table.concat(said, "\\n"))
show("logged", table.concat(logged, "\\n"))
"""


class Outcome(NamedTuple):
    code: int
    comment: Optional[str]
    container: Optional[str]
    admin_comment: Optional[str]
    mark: Optional[str]
    said: str
    logged: str


def environment(
    name: str, users: Sequence[str] = (), groups: Sequence[str] = (), image: str = "img"
) -> Environment:
    return Environment(name, image, "", (), (), None, tuple(users), tuple(groups), "")


def config(*environments: Environment, **settings: Any) -> Config:
    known = {each.name: each for each in environments}
    broken = {"half-done": SiteError("half-done.yaml:3: no image")}
    return Config("/etc/hpcwrap/hpcwrap.yaml", Settings(**settings), {}, known, {}, broken, {})


ACCOUNTS = Accounts(
    uids={"alice": ALICE, "bob": BOB},
    members={"research": [ALICE], 'odd "group" \\': [BOB], "directory": None},
)
SITE = (
    environment("debian-12"),
    environment("cuda-12"),
    environment("for-alice", users=["alice", "nobody-here"]),
    environment("for-research", groups=["research"]),
    environment("for-odd", groups=['odd "group" \\']),
    environment("for-directory", groups=["directory"]),
    environment("for-ghosts", users=["nobody-here"]),
)


def make_table(site: Config, *, clear_container: bool = False) -> str:
    return render_table(
        site, {"debian-12": (DIGEST, OLD)}, ACCOUNTS, clear_container=clear_container, now=NOW
    )


class Filter:
    """The filter with one table; `call` runs it once for one job."""

    def __init__(self, lua: str, directory: pathlib.Path) -> None:
        self.lua = lua
        self.steps = 0  # instructions of Lua that the last call took
        self.noted = ""  # what the last call left in slurmctld's log, errors aside
        self.directory = directory
        self.table = directory / "table.lua"
        self.table.write_text(make_table(config(*SITE)))
        (directory / "driver.lua").write_text(DRIVER)

    def site(self, **settings: Any) -> Filter:
        self.table.write_text(make_table(config(*SITE, **settings)))
        return self

    def call(self, verb: str, **call: Any) -> Outcome:
        document = {"verb": verb, **call}
        (self.directory / "call.lua").write_text("return " + to_lua(document))
        done = subprocess.run(
            [self.lua, "driver.lua", "call.lua", FILTER, self.table],
            cwd=self.directory,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
        )
        assert done.returncode == 0, done.stderr
        steps, _, self.noted = done.stderr.partition("\n")
        self.steps = int(steps)
        return parse(done.stdout)

    def submit(self, partitions: Optional[Mapping[str, Any]] = None, **job: Any) -> Outcome:
        fields = {"user_id": ALICE, "user_name": "alice", **job}
        fields["spank_job_env_size"] = len(fields.get("spank_job_env", {}))
        return self.call("submit", job=fields, partitions=partitions or {})

    def modify(self, job: Mapping[str, Any], record: Mapping[str, Any]) -> Outcome:
        return self.call("modify", job={"user_id": ALICE, **job}, record=record)


def to_lua(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = [f"[{lua_literal(key)}] = {to_lua(item)}" for key, item in value.items()]
        return "{" + ", ".join(pairs) + "}"
    return lua_literal(value)


def parse(text: str) -> Outcome:
    fields: Dict[str, Optional[str]] = {}
    name = ""
    for line in text.splitlines():
        head, equals, tail = line.partition("=")
        if equals and head in Outcome._fields:
            name = head
            fields[name] = None if tail == "nil" else tail
        else:
            fields[name] = f"{fields[name]}\n{line}"
    said, logged = fields.pop("said") or "", fields.pop("logged") or ""
    code = int(fields.pop("code") or "99")
    return Outcome(code=code, said=said, logged=logged, **fields)  # type: ignore[arg-type]


def spank(*names: str) -> Dict[int, str]:
    """SPANK's variables as slurmctld shows them: counted from 0."""
    variables = ["OTHER=1", *(f"HPCWRAP_CONTAINER={name}" for name in names)]
    return dict(enumerate(variables))
