"""Merging layers: against an oracle that extracts them in order, and case by case."""

from __future__ import annotations

import tarfile
from typing import List, Optional

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tars import CannotError, Member, Oracle, make_layer, plan_of, read_stream, stream_of

from hpcwrap.image.plan import Range
from hpcwrap.image.tar import LayerError

DIRECTORIES = st.lists(st.sampled_from("de"), min_size=1, max_size=2).map("/".join)
LEAVES = st.tuples(st.one_of(st.just(""), DIRECTORIES), st.sampled_from("xyz")).map(
    lambda pair: "/".join(part for part in pair if part)
)
# Mostly names that fit together; the odd ones make files where directories were, and back.
NAMES = {
    "file": st.one_of(LEAVES, LEAVES, LEAVES, LEAVES, DIRECTORIES),
    "dir": st.one_of(DIRECTORIES, DIRECTORIES, DIRECTORIES, LEAVES),
    "any": st.one_of(LEAVES, DIRECTORIES),
}
PREFIXES = st.sampled_from(("", "", "", "./", "/", "../", "d/../"))
KINDS = ("file", "file", "file", "dir", "dir", "symlink", "link", "link", "fifo", "device")
STACKS = st.lists(
    st.lists(st.sampled_from((*KINDS, "whiteout", "opaque")), max_size=8), min_size=1, max_size=4
)


@st.composite
def stacks(draw: st.DrawFn) -> List[List[Member]]:
    """Layers whose hard links mostly name what an earlier entry made."""
    made: List[str] = []
    stack = []
    for kinds in draw(STACKS):
        stack.append([draw_member(draw, kind, made) for kind in kinds])
    return stack


def draw_member(draw: st.DrawFn, kind: str, made: List[str]) -> Member:
    if kind == "whiteout":
        return Member(hide(draw(st.sampled_from(made) if made else NAMES["any"])))
    if kind == "opaque":
        return Member(draw(DIRECTORIES) + "/.wh..wh..opq")
    if kind == "link":
        target = draw(st.sampled_from(made) if made else NAMES["file"])
        return Member(draw(NAMES["file"]), "link", link=target)
    name = draw(NAMES.get(kind, NAMES["any"]))
    if kind == "file":
        made.append(name)
    return Member(
        draw(PREFIXES) + name,
        kind,
        content=draw(st.binary(max_size=20)) if kind == "file" else b"",
        link=draw(TARGETS) if kind == "symlink" else "",
        mode=draw(st.sampled_from((0o644, 0o4755, 0o2755, 0o1777, 0o600))),
        uid=draw(st.sampled_from((0, 1000, 3_000_000))),
        uname=draw(st.sampled_from(("", "root", "daemon"))),
    )


TARGETS = st.tuples(st.sampled_from(("", "/", "../", "../../")), DIRECTORIES).map("".join)


def hide(name: str) -> str:
    parent, slash, base = name.rpartition("/")
    return f"{parent}{slash}.wh.{base}"


FORMATS = st.sampled_from((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))


@settings(max_examples=300, deadline=None, report_multiple_bugs=False)
@given(stacks(), FORMATS)
@example([[Member("a"), Member("b", "link", link="a")], [Member(".wh.a")]], tarfile.GNU_FORMAT)
@example(
    [[Member("lib", "symlink", link="/b"), Member("b", "dir")], [Member("lib/a", content=b"x")]],
    tarfile.GNU_FORMAT,
)
def test_merging_equals_extracting_in_order(stack: List[List[Member]], form: int) -> None:
    layers = [make_layer(layer, form) for layer in stack]
    oracle = extracted(layers)
    if oracle is None:
        with pytest.raises(LayerError):
            plan_of(layers)
        layers = [make_layer(layer, form) for layer in without_errors(stack)]
        oracle = extracted(layers)
    assert oracle is not None
    plan = plan_of(layers)
    stream = stream_of(plan, layers)
    assert len(stream) == plan.size
    assert read_stream(stream) == oracle.result()


def extracted(layers: List[bytes]) -> Optional[Oracle]:
    oracle = Oracle()
    try:
        for layer in layers:
            oracle.apply(layer)
    except CannotError:
        return None
    return oracle


def without_errors(stack: List[List[Member]]) -> List[List[Member]]:
    """The stack without the members that cannot be extracted."""
    good: List[List[Member]] = []
    for layer in stack:
        good.append([])
        for member in layer:
            good[-1].append(member)
            if extracted([make_layer(each) for each in good]) is None:
                good[-1].pop()
    return good


def merged(*stack: List[Member]) -> dict[str, str]:
    layers = [make_layer(layer) for layer in stack]
    tree, _ = read_stream(stream_of(plan_of(layers), layers))
    return {name: found.content.decode() or found.kind for name, found in tree.items()}


def test_an_unmodified_layer_is_copied_in_one_go() -> None:
    layer = make_layer(
        [
            Member("./", "dir", mode=0o755),
            Member("./usr/", "dir", mode=0o755),
            Member("./usr/bin/", "dir", mode=0o755),
            Member("./usr/bin/a", content=b"x" * 5000, uname="root"),
            Member("./usr/bin/b", "link", link="./usr/bin/a"),
            Member("./bin", "symlink", link="usr/bin"),
        ]
    )
    assert [type(segment) for segment in plan_of([layer]).segments] == [Range, bytes]


def test_a_directory_that_a_later_layer_describes_still_comes_before_its_files() -> None:
    first = make_layer([Member("etc", "dir", mode=0o700), Member("etc/a", content=b"1")])
    second = make_layer([Member("etc", "dir", mode=0o755), Member("etc/b", content=b"2")])
    tree, _ = read_stream(stream_of(plan_of([first, second]), [first, second]))
    assert list(tree) == ["etc", "etc/a", "etc/b"]
    assert tree["etc"].mode == 0o755


def test_a_hidden_file_lives_on_under_its_hard_link() -> None:
    first = [Member("a", content=b"body"), Member("b", "link", link="a")]
    assert merged(first, [Member("c", "link", link="b")], [Member(".wh.a")]) == {
        "b": "body",
        "c": "body",
    }


def test_a_replaced_file_leaves_the_old_content_to_its_hard_link() -> None:
    first = [Member("a", content=b"old"), Member("b", "link", link="a")]
    assert merged(first, [Member("a", content=b"new")]) == {"a": "new", "b": "old"}


def test_whiteouts_concern_lower_layers_only() -> None:
    stack = ([Member("d/old"), Member("gone")], [Member("d/new"), Member("d/.wh..wh..opq")])
    assert sorted(merged(*stack, [Member("gone"), Member(".wh.gone")])) == ["d", "d/new", "gone"]


def test_files_go_where_a_symbolic_link_leads_and_never_out_of_the_root() -> None:
    first = [Member("usr/lib", "dir"), Member("lib", "symlink", link="usr/lib")]
    first += [Member("up", "symlink", link="../../../etc")]
    second = [Member("lib/libc.so", content=b"libc"), Member("up/passwd", content=b"root")]
    tree = merged(first, second)
    assert tree["usr/lib/libc.so"] == "libc"
    assert tree["etc/passwd"] == "root"
    assert tree["lib"] == "usr/lib"


@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "a/../../etc/passwd"])
def test_names_stay_below_the_root(name: str) -> None:
    assert merged([Member(name, content=b"x")]) == {"etc": "dir", "etc/passwd": "x"}


def test_devices_are_left_out_and_counted() -> None:
    layer = make_layer([Member("dev/null", "device"), Member("dev/x", "link", link="dev/null")])
    plan = plan_of([layer])
    assert plan.devices == 2
    assert list(read_stream(stream_of(plan, [layer]))[0]) == ["dev"]


def test_setuid_is_taken_away_and_the_sticky_bit_stays() -> None:
    layer = make_layer([Member("su", mode=0o6755), Member("tmp", "dir", mode=0o1777)])
    tree, _ = read_stream(stream_of(plan_of([layer]), [layer]))
    assert (tree["su"].mode, tree["tmp"].mode) == (0o755, 0o1777)


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        ([[Member("a"), Member("a/b")]], "layer 1 of 1 has files below a, which is no directory"),
        ([[], [Member("a", "link", link="b")]], "layer 2 of 2 has the hard link a to b, which is"),
        ([[Member("d", "dir"), Member("a", "link", link="d")]], "is a directory"),
        ([[Member("a", "symlink", link="a"), Member("a/b")]], "loop of symbolic links"),
        ([[Member("d/.wh..")]], "whiteout of no file"),
    ],
)
def test_layers_that_cannot_be_merged(stack: List[List[Member]], reason: str) -> None:
    with pytest.raises(LayerError, match=reason):
        plan_of([make_layer(layer) for layer in stack])


def test_the_root_directory_and_the_newest_time_are_known() -> None:
    layer = make_layer([Member("./", "dir", mode=0o2750, uid=7), Member("a", mtime=1_700_000_000)])
    plan = plan_of([layer])
    assert (plan.root.mode, plan.root.uid, plan.newest) == (0o750, 7, 1_700_000_000)
