"""Data folders as people have them: mistyped, relative, damaged, full of other things."""

import gzip
import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from test_data_layouts import CIFAR, MNIST, flower_files, mnist_files, write_folder, write_tar

from mnlib.lab import cli, data
from mnlib.lab.data.store import workspace, write_store


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder, the only one there is."""
    monkeypatch.setenv("MNLIB_DATA", str(tmp_path))
    monkeypatch.delenv("MNLIB_TIER", raising=False)
    return tmp_path


def row_of(name):
    return next(row for row in data.status() if row["name"] == name)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[]", "has no attribute 'get'"),
        (b"\xff\xfe\x00", "can't decode"),
        (b'{"description": null}', "its description is null"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_damaged_store_is_said_in_its_row_and_the_others_are_listed(
    folder, capsys, content, reason
):
    info = write_store("cifar10", CIFAR, folder, "a test") / "dataset_info.json"
    write_store("mnist", MNIST, folder, "another test")
    info.unlink()
    if content is not None:
        info.write_bytes(content)
    row = row_of("cifar10")
    assert reason in row["source"]
    assert row["source"].startswith("dataset_info.json cannot be read (")
    assert row["source"].endswith("run: mnlib fetch cifar10")
    assert row["source"].isprintable()
    assert row_of("mnist")["source"] == "another test"
    assert cli.main(["data"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(data.status())


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="nothing is closed to the administrator"
)
def test_a_folder_that_may_not_be_entered_hides_only_itself(folder):
    write_folder(folder / "weights", {"mobilenet_v2-b0353104.pth": b""})
    write_folder(folder, mnist_files())
    (folder / "weights").chmod(0o400)  # its names can be listed, not looked at
    try:
        assert row_of("mobilenet_v2")["tier"] == "embedded"
        assert row_of("mnist")["tier"] == "real data"
    finally:
        (folder / "weights").chmod(0o700)


def test_the_present_folder_can_be_named(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MNLIB_DATA", ".")
    assert data.folders() == [Path()]
    write_folder(folder, mnist_files())
    assert data.tier("mnist") == "real data"


def test_empty_names_of_folders_are_none(folder, monkeypatch):
    monkeypatch.setenv("MNLIB_DATA", os.pathsep.join(["", str(folder), ""]))
    assert data.folders() == [folder]


def test_the_home_of_nobody_is_one_sentence(folder, monkeypatch):
    monkeypatch.setenv("MNLIB_DATA", "~nobody-of-this-name/data")
    with pytest.raises(ValueError, match="a user who is not known here: write the folder out"):
        data.status()


def test_reading_makes_no_folder_and_says_that_there_is_none(folder, monkeypatch):
    mistyped = folder / "mistyped"
    monkeypatch.setenv("MNLIB_DATA", str(mistyped))
    assert data.tier("mnist") == "embedded"
    data.status()
    with pytest.raises(FileNotFoundError, match=r"mistyped \(no folder\): run: mnlib fetch mnist"):
        data.load("mnist")
    assert not mistyped.exists()


def test_packing_into_a_folder_that_is_not_there_says_that_it_is_made(folder, monkeypatch, capsys):
    write_folder(folder / "real" / "flower_photos", flower_files())
    folders = folder / "cache", folder / "real"
    monkeypatch.setenv("MNLIB_DATA", os.pathsep.join(map(str, folders)))
    data.packed_flowers(8)
    assert f"making the data folder {folder / 'cache'}\n" in capsys.readouterr().err


def test_what_is_no_photograph_is_passed_over(folder):
    files = flower_files()
    write_folder(folder / "flower_photos", files)
    daisy = folder / "flower_photos" / "daisy"
    write_folder(
        daisy,
        dict.fromkeys(("._0.jpg", "2.jpg.part", "3.jpg.png", "4.jpg~", "Thumbs.db"), b"no photo"),
    )
    (daisy / "folder.jpg").mkdir()
    write_folder(folder / "flower_photos" / "__MACOSX" / "daisy", {"._0.jpg": b"no photo"})
    if hasattr(os, "mkfifo"):
        os.mkfifo(daisy / "pipe.jpg")
    photographs, _ = data.load("tf_flowers")
    assert photographs.files == tuple(files)
    assert data.packed_flowers(8)[2] == tuple(files)


def test_what_is_no_photograph_in_the_archive_is_passed_over(folder):
    import tarfile

    files = flower_files()
    others = {"../__MACOSX/flower_photos/daisy/0.jpg": b"", "daisy/._0.jpg": b"no photo"}
    write_tar(folder / "flower_photos.tgz", files | others, "flower_photos")
    content = gzip.decompress((folder / "flower_photos.tgz").read_bytes())
    with tarfile.open(fileobj=(out := io.BytesIO()), mode="w") as archive:
        for kind, name in ((tarfile.DIRTYPE, "folder.jpg"), (tarfile.SYMTYPE, "link.jpg")):
            member = tarfile.TarInfo(f"flower_photos/daisy/{name}")
            member.type, member.linkname = kind, "../../nowhere.jpg"
            archive.addfile(member)
    (folder / "flower_photos.tgz").write_bytes(
        gzip.compress(out.getvalue()[: 2 * tarfile.BLOCKSIZE] + content)
    )
    assert data.load("tf_flowers").images.files == tuple(files)


@pytest.mark.parametrize("kind", ["empty", "link", "gone"])
def test_a_photograph_that_is_not_there_is_named_and_the_others_are_read(folder, kind):
    write_folder(folder / "flower_photos", flower_files())
    file = folder / "flower_photos" / "daisy" / "1.jpg"
    file.unlink()
    if kind == "empty":
        file.touch()
    else:
        file.symlink_to(folder / "nowhere.jpg")
    photographs, _ = data.load("tf_flowers")
    assert len(photographs) == 10
    assert photographs[0].shape == (12, 10, 3)
    with pytest.raises(ValueError, match=r"daisy/1\.jpg cannot be decoded \(.*move the") as caught:
        photographs[1]
    assert "delete" not in str(caught.value)
    with pytest.raises(ValueError, match=r"daisy/1\.jpg cannot be decoded"):
        data.packed_flowers(8)


@pytest.mark.skipif(os.name != "posix", reason="elsewhere names are text")
def test_a_name_that_is_no_text_is_packed_and_printable(folder):
    files = flower_files()
    write_folder(folder / "flower_photos", files)
    daisy = os.fsencode(folder / "flower_photos" / "daisy")
    with open(daisy + b"/\xff.jpg", "wb") as file:
        file.write(files["daisy/0.jpg"])
    assert len(data.packed_flowers(8)[0]) == 11
    with open(daisy + b"/\xff.jpg", "wb") as file:
        file.write(b"")
    with pytest.raises(ValueError, match="cannot be decoded") as caught:
        data.packed_flowers(8)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz.part", "train-images-idx3-ubyte.tmp"])
def test_what_is_still_being_downloaded_is_not_found(folder, name):
    write_folder(folder, {name: b"a beginning"})
    assert data.tier("mnist") == "embedded"


def test_a_link_that_leads_nowhere_is_not_found(folder):
    (folder / "mobilenet_v2_imagenet.pth").symlink_to(folder / "nowhere")
    assert data.tier("mobilenet_v2") == "embedded"


def test_a_folder_with_a_files_name_is_one_sentence(folder):
    for name in ("mobilenet_v2_imagenet.pth", "flower_photos.tgz", "cifar-10-binary.tar.gz"):
        (folder / name).mkdir()
    for name in ("mobilenet_v2", "tf_flowers", "cifar10"):
        with pytest.raises(ValueError, match=f"cannot be read as {name}") as caught:
            data.load(name)
        assert "delete" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_a_pipe_is_not_waited_for(folder):
    os.mkfifo(folder / "flower_photos.tgz")
    with pytest.raises(ValueError, match="it is neither file nor folder"):
        data.load("tf_flowers")


def test_a_damaged_cache_is_packed_again(folder):
    write_folder(folder / "flower_photos", flower_files())
    images = np.array(data.packed_flowers(8)[0])
    (packed,) = (folder / "packed").iterdir()
    for damage in (b"", packed.read_bytes()[:-1], b"\x93NUMPY\x01\x00\xff\xff{"):
        packed.unlink()  # the map of before still reads the old one
        packed.write_bytes(damage)
        np.testing.assert_array_equal(data.packed_flowers(8)[0], images)
    packed.unlink()
    np.save(packed, images[:5])
    np.testing.assert_array_equal(data.packed_flowers(8)[0], images)


def test_a_disk_that_fills_while_packing_is_one_sentence(folder, monkeypatch):
    write_folder(folder / "flower_photos", flower_files())

    def full(file, header):
        file.write(b"a beginning")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(OSError, match="is full: free some space, or let MNLIB_DATA name another"):
        data.packed_flowers(8)
    assert sorted(p.name for p in folder.iterdir()) == [".mnlib.lock", "flower_photos"]


def test_two_at_once_have_folders_of_their_own(folder):
    order, first = [], threading.Event()

    def write():
        with workspace(folder) as temporary:
            order.append(temporary)
            first.set()
            assert list(temporary.iterdir()) == []
            (temporary / "x.part").write_text("half")
            assert len(list(folder.glob(".mnlib-tmp-*"))) == 1

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(order)) == 4
    assert not list(folder.glob(".mnlib-tmp-*"))
