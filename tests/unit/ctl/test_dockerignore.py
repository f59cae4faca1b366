"""The semantics of .dockerignore, from BuildKit's documented rules and its observable behaviour."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.ctl.dockerignore import Matcher, Verdict, parse_ignore_file


def is_ignored(patterns: list[str], path: str) -> bool:
    """Judge `path` as a walk does: every directory above it first."""
    matcher = Matcher(patterns)
    assert matcher.is_exact, patterns
    verdict: Verdict | None = None
    parts = path.split("/")
    for end in range(1, len(parts) + 1):
        verdict = matcher.judge("/".join(parts[:end]), verdict)
    assert verdict is not None
    return verdict.is_ignored


MATCHING = [
    ("**", "file"),
    ("**/", "file"),
    ("**", "dir/file"),
    ("**/**", "dir/file"),
    ("dir/**", "dir/dir2/file"),
    ("**/dir", "dir"),
    ("**/dir", "dir/file"),
    ("**/dir", "a/b/dir/file"),
    ("**/dir2/*", "dir/dir2/file"),
    ("**/dir2/**", "dir/dir2/dir3/file"),
    ("**file", "dir/dir/file"),
    ("**file", "dir/myfile"),
    ("**/file*.txt", "dir/dir/file.txt"),
    ("**/**/*.txt", "file.txt"),
    ("a**/*.txt", "a/dir/dir/file.txt"),
    ("a/*.txt", "a/file.txt"),
    ("a[b-d]e", "ace"),
    ("a[^b-d]e", "aze"),
    ("[\\]a]", "]"),
    ("a\\*b", "a*b"),
    (".*", ".foo"),
    ("abc.def", "abc.def"),
    ("abc?def", "abcZdef"),
    ("**/foo/bar", "dir/dir2/foo/bar"),
    ("abc/**", "abc/def/ghi"),
    ("a(b)c/def", "a(b)c/def"),
    ("dist/*.whl", "dist/a-2.4.0+g08.whl"),
    ("docs", "docs/deep/in/it"),
    ("docs/", "docs/file"),
    ("/docs", "docs"),
    ("./docs", "docs"),
    ("docs/../docs", "docs"),
    ("*.{js,ts}", "a.{js,ts}"),
    ("[a-ζ]*", "α"),
    ("a?b", "a☺b"),
]
NOT_MATCHING = [
    ("**/**/*.txt2", "dir/dir/file.txt"),
    ("a/*.txt", "a/dir/file.txt"),
    ("a[b-d]e", "ae"),
    ("a[b-d]e", "aae"),
    (".*", "foo"),
    ("abc.def", "abcZdef"),
    ("abc?def", "abcdef"),
    ("abc/**", "abc"),
    ("**/.foo", "bar.foo"),
    ("a?b", "a/b"),
    ("docs", "docs2"),
    ("docs", "a/docs"),
    ("*.{js,ts}", "a.js"),
    ("*/temp", "temp"),
    ("*/temp", "a/b/temp"),
]


@pytest.mark.parametrize(("pattern", "path"), MATCHING)
def test_a_pattern_ignores_what_it_describes_and_what_lies_below(pattern: str, path: str) -> None:
    assert is_ignored(parse_ignore_file(pattern.encode()), path)


@pytest.mark.parametrize(("pattern", "path"), NOT_MATCHING)
def test_a_pattern_keeps_what_it_does_not_describe(pattern: str, path: str) -> None:
    assert not is_ignored(parse_ignore_file(pattern.encode()), path)


@pytest.mark.parametrize(
    ("patterns", "path", "expected"),
    [
        (["docs", "!docs/README.md"], "docs/README.md", False),
        (["docs", "!docs/README.md"], "docs/other.md", True),
        (["*.md", "!README*.md", "README-secret.md"], "README-secret.md", True),
        (["*.md", "README-secret.md", "!README*.md"], "README-secret.md", False),
        (["!a.go", "*.go"], "a.go", True),
        (["**", "!util/docker/web"], "util/docker/web/foo", False),
        (["**", "!util/docker/web", "util/docker/web/foo"], "util/docker/web/foo", True),
        (["**", "!dist/*.whl"], "dist/a.whl", False),
        (["*", "!src/**"], "src/a/b", False),
        (["*", "!src/**"], "other", True),
    ],
)
def test_the_last_pattern_that_fits_decides(patterns: list[str], path: str, expected: bool) -> None:
    assert is_ignored(patterns, path) is expected


def test_a_pattern_that_could_not_matter_is_not_handed_down() -> None:
    # BuildKit skips the second `a` for the directory, so it cannot take `a/x` away again.
    assert not is_ignored(["a", "!a/x", "a"], "a/x")
    assert is_ignored(["a", "!a/x", "a"], "a/y")


@pytest.mark.parametrize(
    ("text", "patterns"),
    [
        (b"\xef\xbb\xbfa\r\n# comment\n\n  b  \n", ["a", "b"]),
        (b"  # no comment", ["# no comment"]),
        (b"/a//b/./c/", ["a/b/c"]),
        (b"! /abs", ["!abs"]),
        (b"\xa0".decode("latin-1").encode() + b"a", ["a"]),
        (b"\x1fa", ["\x1fa"]),
        (b"/", ["/"]),
        (b"a/..", ["."]),
        (b"\xfcber", ["\udcfcber"]),
    ],
)
def test_lines_are_cleaned_as_buildkit_cleans_them(text: bytes, patterns: list[str]) -> None:
    assert parse_ignore_file(text) == patterns


@pytest.mark.parametrize(
    "pattern",
    [
        "!",  # BuildKit refuses it
        "[a", "a[", "*[", "a*\\", "[z-a]*",  # malformed, in one way or the other
        "[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]",  # and so is what is not escaped there
        "src\\test*", "\\d*", "*\\é",  # escapes that Go's regular expressions interpret
        "[[:alpha:]]", "a|b*", "a{2}*",  # and other syntax of theirs
        "\udcfcber", "*\ufffd", "\ufeff*", "[a-\ufffe]",  # bytes that are no text to Go
    ],
)  # fmt: skip
def test_what_only_buildkit_can_read_switches_the_filter_off(pattern: str) -> None:
    assert not Matcher([pattern]).is_exact


def test_a_directory_may_be_skipped_only_if_no_exception_reaches_into_it() -> None:
    assert Matcher(["a"]).may_skip_below("a")
    assert Matcher(["a", "!b/c"]).may_skip_below("a")
    assert not Matcher(["a", "!a/b/c"]).may_skip_below("a")
    assert not Matcher(["a", "!a/b/**"]).may_skip_below("a/b")
    assert not Matcher(["a", "!*.md"]).may_skip_below("a")


NAMES = st.sampled_from(["a", "b", "ab", ".a", "a.b", "é"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
GLOBS = st.lists(
    st.sampled_from(["a", "b", ".", "*", "**", "?", "/", "!", "[ab]", "é"]), min_size=1
).map("".join)


@given(st.lists(GLOBS), PATHS)
def test_judging_never_fails(patterns: list[str], path: str) -> None:
    matcher = Matcher(parse_ignore_file("\n".join(patterns).encode()))
    if matcher.is_exact:
        is_ignored(parse_ignore_file("\n".join(patterns).encode()), path)


@given(st.lists(GLOBS.filter(lambda text: not text.lstrip().startswith("!"))), PATHS, NAMES)
def test_without_exceptions_nothing_below_an_ignored_directory_is_kept(
    patterns: list[str], path: str, name: str
) -> None:
    matcher = Matcher(patterns)
    if matcher.is_exact and is_ignored(patterns, path):
        assert is_ignored(patterns, f"{path}/{name}")


@given(st.lists(GLOBS), PATHS)
def test_excepting_everything_last_keeps_everything(patterns: list[str], path: str) -> None:
    matcher = Matcher([*patterns, "!**"])
    if matcher.is_exact:
        assert not is_ignored([*patterns, "!**"], path)
