"""Published weights: where they are looked for, and fetching them from a server on this machine."""

import hashlib
import http.server
import resource
import threading
from pathlib import Path

import pytest

from fvq.evaluate.networks.pretrained import PUBLISHED, PretrainedFile, fetch, find_pretrained, where_to_put
from fvq.runtime.errors import UserError

CONTENT = bytes(range(256)) * 12_000  # three blocks


@pytest.fixture
def served():
    """(address, what it serves by path, the paths asked for); a value is bytes, or bytes and a length that is wrong."""
    content: dict[str, bytes | tuple[bytes, int]] = {}
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path not in content:
                self.send_error(404)
                return
            found = content[self.path]
            body, length = found if isinstance(found, tuple) else (found, len(found))
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", content, asked
        server.shutdown()
        thread.join()


@pytest.fixture
def folders(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """The folder of ``$FVQ_WEIGHTS`` and torch hub's, both empty."""
    own, hub = tmp_path / "own", tmp_path / "torch" / "hub" / "checkpoints"
    own.mkdir()
    hub.mkdir(parents=True)
    monkeypatch.setenv("FVQ_WEIGHTS", str(own))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return own, hub


def described(content: bytes, name: str = "net.pth", address: str | None = None) -> PretrainedFile:
    return PretrainedFile(name, hashlib.sha256(content).hexdigest(), len(content), address)


# Where it lies


def test_a_parameter_goes_before_the_variable_and_that_before_torch_hub(folders, tmp_path):
    own, hub = folders
    file = described(b"weights")
    assert find_pretrained(file, None, "weights") is None
    (hub / file.name).write_bytes(b"weights")
    assert find_pretrained(file, None, "weights") == hub / file.name
    (own / file.name).write_bytes(b"weights")
    assert find_pretrained(file, None, "weights") == own / file.name
    (tmp_path / "mine.pth").write_bytes(b"weights")
    assert find_pretrained(file, tmp_path / "mine.pth", "weights") == tmp_path / "mine.pth"
    assert find_pretrained(file, hub, "weights") == hub / file.name
    with pytest.raises(UserError, match=rf"^weights: {tmp_path}/net\.pth: no such file"):
        find_pretrained(file, tmp_path, "weights")
    with pytest.raises(UserError, match=r"^weights: .*none\.pth: no such file"):
        find_pretrained(file, tmp_path / "none.pth", "weights")


def test_of_several_files_any_one_will_do(folders):
    own, hub = folders
    files = (described(b"one", "one.pth"), described(b"two", "two.pth"))
    (own / "two.pth").write_bytes(b"two")
    assert find_pretrained(files, None, "weights") == own / "two.pth"
    assert find_pretrained(files, own, "weights") == own / "two.pth"
    (hub / "one.pth").write_bytes(b"one")
    assert find_pretrained(files, None, "weights") == hub / "one.pth"
    (hub / "one.pth").write_bytes(b"three")
    with pytest.raises(UserError, match=r"one\.pth: SHA-256 is .*, and that of the weights is \w{64} or is \w{64}$"):
        find_pretrained(files, None, "weights")


def test_the_tables_are_of_published_files():
    for name, files in PUBLISHED.items():
        first = files[0]
        assert first.address is not None and first.address.startswith("https://") and first.name in first.address
        assert f"fvq doctor --fetch {name}" in where_to_put(first, "weights")
        for file in files:
            # Publishers put the first digits of the hash in the name.
            stated = [part for part in file.name.removesuffix(".pth").split("-") if len(part) == 8 and part.isalnum()]
            assert all(file.sha256.startswith(part) for part in stated)
            assert len(file.sha256) == 64 or file.sha256 in stated


# Fetching


@pytest.mark.parametrize("own_folder", [True, False])
def test_it_is_fetched_into_the_folder_that_is_looked_at_first(folders, served, monkeypatch, own_folder):
    own, hub = folders
    address, content, asked = served
    content["/net.pth"] = CONTENT
    if not own_folder:
        monkeypatch.delenv("FVQ_WEIGHTS")
        hub.rmdir()
    file = described(CONTENT, address=f"{address}/net.pth")
    path = fetch(file)
    assert path == (own if own_folder else hub) / "net.pth"
    assert path.read_bytes() == CONTENT and list(path.parent.iterdir()) == [path] and asked == ["/net.pth"]
    assert find_pretrained(file, None, "weights") == path


def test_a_size_that_is_not_published_is_not_checked(folders, served):
    address, content, _ = served
    content["/net.pth"] = CONTENT
    prefix = hashlib.sha256(CONTENT).hexdigest()[:8]
    assert fetch(PretrainedFile("net.pth", prefix, None, f"{address}/net.pth")).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("served_content", "complaint"),
    [
        (None, r"cannot be fetched .HTTP Error 404: Not Found."),
        (CONTENT[:-1], r"3,071,999 bytes came, and net\.pth has 3,072,000"),
        ((CONTENT[:2_000_000], len(CONTENT)), r"2,000,000 bytes came, and net\.pth has|cannot be fetched .Incomplete"),
        (CONTENT[::-1], r"SHA-256 is .*, and that of net\.pth is "),
        (b"<html>sign in to this network</html>", r"36 bytes came"),
    ],
)
def test_what_is_not_the_file_leaves_nothing(folders, served, served_content, complaint):
    own, _ = folders
    address, content, _ = served
    if served_content is not None:
        content["/net.pth"] = served_content
    with pytest.raises(UserError, match=rf"^{address}/net\.pth: {complaint}") as failed:
        fetch(described(CONTENT, address=f"{address}/net.pth"))
    assert "\n" not in str(failed.value) and list(own.iterdir()) == []


def test_without_a_network_it_is_one_line(folders):
    own, _ = folders
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as closed:
        port = closed.server_port
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}/net\.pth: cannot be fetched .\[Errno") as failed:
        fetch(described(CONTENT, address=f"http://127.0.0.1:{port}/net.pth"))
    assert "\n" not in str(failed.value) and list(own.iterdir()) == []
    with pytest.raises(UserError, match=r"net\.pth: nobody publishes it"):
        fetch(described(CONTENT))


def test_a_full_disk_leaves_nothing_and_names_the_file(folders, served):
    own, _ = folders
    address, content, _ = served
    content["/net.pth"] = CONTENT
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, hard))
        with pytest.raises(OSError) as failed:
            fetch(described(CONTENT, address=f"{address}/net.pth"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failed.value.filename == str(own / "net.pth") and list(own.iterdir()) == []
