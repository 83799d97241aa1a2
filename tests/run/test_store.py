"""Two generations of a checkpoint, of which one is sound at every instant."""

import builtins
import errno
import fcntl
import logging
import os
import re
import socket
import threading
import time

import numpy as np
import pytest

from batchkit.run import CheckpointError, _lock
from batchkit.run._file import decode, read_file
from batchkit.run._store import Store

from .processes import generation, step_of


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "run.h5")


def put(path, step, size=1000):
    with Store(path) as store:
        store.write(*generation(step, size))


def steps(path):
    """The generations on the disk, the newest first."""
    return [step_of(*read_file(x)) for x in (path, f"{path}.previous")]


def found(path):
    """The generation that is read, and its path."""
    with Store(path) as store:
        found = store.read()
        assert found is not None
        return step_of(*decode(*found)), found[0]


def damage(path, place=700):
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def names(path):
    return sorted(os.listdir(os.path.dirname(path)))


def test_store_without_a_write_leaves_no_file(path):
    with Store(path) as store:
        assert store.read() is None
        assert names(path) == ["run.h5.lock"]
    assert names(path) == []


def test_previous_generation_is_kept(path):
    with Store(path) as store:
        for step in range(1, 6):
            store.write(*generation(step, 1000))
            if step > 1:
                assert steps(path) == [step, step - 1]
    put(path, 6)
    assert steps(path) == [6, 5]
    assert names(path) == ["run.h5", "run.h5.previous"]
    assert found(path) == (6, path)


def test_damaged_generation_falls_back_with_a_warning(path, caplog):
    put(path, 1)
    put(path, 2)
    damage(path)
    with caplog.at_level(logging.WARNING, "batchkit"):
        assert found(path) == (1, f"{path}.previous")
    assert "checksum" in caplog.text
    assert f"{path}.previous" in caplog.text


@pytest.mark.parametrize("place", [30, 700])
@pytest.mark.parametrize("read", [True, False])
def test_damaged_generation_never_replaces_a_sound_one(path, place, read):
    put(path, 1)
    put(path, 2)
    damage(path, place)
    with Store(path) as store:
        if read:
            store.read()
        store.write(*generation(3, 1000))
        assert steps(path) == [3, 1]
        store.write(*generation(4, 1000))
        assert steps(path) == [4, 3]


def test_missing_generation_falls_back_with_a_warning(path, caplog):
    put(path, 1)
    put(path, 2)
    os.unlink(path)
    with caplog.at_level(logging.WARNING, "batchkit"):
        assert found(path) == (1, f"{path}.previous")
    assert f"{path!r} is missing." in caplog.text
    put(path, 3)
    assert steps(path) == [3, 1]


def test_generation_removed_during_a_run_leaves_the_previous(path):
    with Store(path) as store:
        for step in (1, 2):
            store.write(*generation(step, 1000))
        os.unlink(path)
        store.write(*generation(3, 1000))
    assert steps(path) == [3, 1]


def test_two_damaged_generations_are_refused(path):
    put(path, 1)
    put(path, 2)
    damage(path)
    damage(f"{path}.previous", 30)
    with Store(path) as store, pytest.raises(CheckpointError) as info:
        store.read()
    assert repr(path) in info.value.reason
    assert repr(f"{path}.previous") in info.value.reason
    assert "`fresh=True`" in info.value.remedy
    # A run with fresh=True writes there, and then there is a sound one again.
    put(path, 3)
    assert step_of(*read_file(path)) == 3


def test_newer_format_does_not_fall_back(path, monkeypatch):
    put(path, 1)
    with monkeypatch.context() as patch:
        patch.setattr("batchkit.run._file.FORMAT", 2)
        put(path, 2)
    assert step_of(*read_file(f"{path}.previous")) == 1
    with Store(path) as store, pytest.raises(CheckpointError, match="has format 2"):
        store.read()


def test_newer_format_becomes_the_previous_generation_with_fresh(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("batchkit.run._file.FORMAT", 2)
        put(path, 1)
    with Store(path, fresh=True) as store:
        store.write(*generation(2, 1000))
    assert step_of(*read_file(path)) == 2
    with pytest.raises(CheckpointError, match="has format 2"):
        read_file(f"{path}.previous")


FOREIGN = [b"a,b\n1,2\n", b"\x89HDF\r\n\x1a\n and more"]


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("at", ["", ".previous"])
@pytest.mark.parametrize("beside", [False, True])
def test_foreign_file_is_refused_at_the_start(path, content, at, beside):
    if beside:
        put(path, 1)
        put(path, 2)
    with open(f"{path}{at}", "wb") as file:
        file.write(content)
    before = names(path)
    words = r"no file of batchkit.*Move this file away.*fresh=True"
    with pytest.raises(CheckpointError, match=words), Store(path):
        pass
    with open(f"{path}{at}", "rb") as file:
        assert file.read() == content
    assert names(path) == before


def test_foreign_file_that_appears_during_a_run_is_not_replaced(path):
    with Store(path, fresh=True) as store:
        store.write(*generation(1, 1000))
        store.write(*generation(2, 1000))
        with open(path, "wb") as file:
            file.write(FOREIGN[0])
        with pytest.raises(CheckpointError, match="Move this file away"):
            store.write(*generation(3, 1000))
    with open(path, "rb") as file:
        assert file.read() == FOREIGN[0]
    assert step_of(*read_file(f"{path}.previous")) == 1


@pytest.mark.parametrize("content", FOREIGN)
def test_foreign_file_is_replaced_with_fresh_and_logged(path, content, caplog):
    with open(path, "wb") as file:
        file.write(content)
    with caplog.at_level(logging.WARNING, "batchkit"), Store(path, fresh=True) as store:
        store.write(*generation(1, 1000))
        store.write(*generation(2, 1000))
    assert len(caplog.messages) == 1
    assert repr(path) in caplog.text
    assert "It is replaced, as fresh=True says" in caplog.text
    assert steps(path) == [2, 1]


def test_name_too_long_for_the_files_beside_it_is_refused_at_the_start(tmp_path):
    longest = os.pathconf(tmp_path, "PC_NAME_MAX") - len(".previous.tmp")
    put(str(tmp_path / ("x" * longest)), 1)
    with (
        pytest.raises(CheckpointError, match=r"name too long.*Choose a shorter name"),
        Store(str(tmp_path / ("x" * (longest + 1)))),
    ):
        pass
    assert [len(x) for x in os.listdir(tmp_path)] == [longest]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
@pytest.mark.parametrize("fresh", [False, True])
def test_pipes_and_folders_are_refused_at_once(path, make, fresh):
    make(path)
    with (
        pytest.raises(CheckpointError, match="the path of a file"),
        Store(path, fresh=fresh),
    ):
        pass
    with pytest.raises(CheckpointError, match="the path of a file"):
        read_file(path)


def test_symbolic_links_beside_the_file_are_not_followed(path, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    victim = tmp_path / "elsewhere" / "victim"
    victim.write_text("precious")
    with Store(path) as store:
        os.symlink(victim, f"{path}.tmp")
        store.write(*generation(1, 1000))
    os.symlink(victim, f"{path}.lock")
    with pytest.raises(CheckpointError, match="Cannot write"), Store(path):
        pass
    assert victim.read_text() == "precious"


def forbid(monkeypatch):
    """A folder in which nothing can be made, also for root."""
    call = os.open

    def fail(name, flags, *args, **kwargs):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return call(name, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", fail)


def test_checkpoint_in_a_read_only_folder_is_read_and_not_written(path, monkeypatch):
    put(path, 1)
    put(path, 2)
    before = names(path)
    forbid(monkeypatch)
    assert found(path) == (2, path)
    with Store(path) as store:
        store.read()
        for fail in (store.check_writable, lambda: store.write(*generation(3, 1000))):
            with pytest.raises(CheckpointError, match=r"has not ended.*Copy the file"):
                fail()
    for kwargs in ({"fresh": True}, {}):
        other = path if kwargs else f"{path}.none"
        with pytest.raises(CheckpointError, match="Read-only"), Store(other, **kwargs):
            pass
    assert names(path) == before


def test_empty_file_is_replaced(path):
    open(path, "w").close()
    put(path, 1)
    assert step_of(*read_file(path)) == 1


def test_leftovers_of_a_killed_process_are_removed(path):
    put(path, 1)
    names_of_a_killed = ("tmp", "0a1b2c3d.tmp", "previous.tmp", "lock")
    for name in names_of_a_killed:
        with open(f"{path}.{name}", "w") as file:
            file.write("4194305 elsewhere boot 0a1b2c3d touched\n")
    assert found(path)[0] == 1
    assert names(path) == ["run.h5"]


def test_symbolic_link_at_the_path_is_followed(path, tmp_path):
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real" / "run.h5", path)
    put(path, 1)
    put(path, 2)
    assert os.path.islink(path)
    assert names(str(tmp_path / "real" / "x")) == ["run.h5", "run.h5.previous"]
    assert found(path)[0] == 2


def test_changing_the_working_directory_does_not_move_the_file(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with Store("run.h5") as store:
        os.chdir("other")
        store.write(*generation(1, 1000))
    assert step_of(*read_file(tmp_path / "run.h5")) == 1
    assert list((tmp_path / "other").iterdir()) == []


def failing(call, code, count=1):
    """A system call that fails from its n-th call on."""
    left = count

    def fail(*args, **kwargs):
        nonlocal left
        left -= 1
        if left > 0:
            return call(*args, **kwargs)
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("name", ["fsync", "replace", "link"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_failed_system_call_raises_and_loses_nothing(
    path, name, count, code, monkeypatch
):
    with Store(path) as store:
        for step in (1, 2):
            store.write(*generation(step, 1000))
        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing(getattr(os, name), code, count))
            if (name, count) == ("link", 2):
                store.write(*generation(3, 1000))
            else:
                with pytest.raises(CheckpointError) as info:
                    store.write(*generation(3, 1000))
                assert info.value.reason == (
                    f"Cannot write {path!r}: {os.strerror(code)}."
                )
                assert (code == errno.ENOSPC) == ("Free space" in info.value.remedy)
        newest, before = steps(path)
        assert newest in (2, 3)
        assert before in (1, 2)
        assert names(path) == ["run.h5", "run.h5.lock", "run.h5.previous"]
        store.write(*generation(4, 1000))
    assert steps(path) == [4, newest]


def test_full_disk_can_be_read(path, monkeypatch):
    put(path, 1)
    monkeypatch.setattr(os, "write", failing(os.write, errno.ENOSPC))
    with Store(path), pytest.raises(CheckpointError, match="by another process"):
        Store(path).__enter__()
    assert found(path)[0] == 1


def test_disk_that_fills_up_leaves_no_partial_file(path, monkeypatch):
    def small(file, mode="r", **kwargs):
        opened = open_(file, mode, **kwargs)
        if "x" in mode:
            opened.write = failing(opened.write, errno.ENOSPC)
        return opened

    open_ = open
    put(path, 1)
    with Store(path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "open", small)
            with pytest.raises(CheckpointError, match="No space left on device"):
                store.write(*generation(2, 1000))
        assert names(path) == ["run.h5", "run.h5.lock"]
    assert found(path)[0] == 1


def test_interrupt_leaves_no_partial_file(path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    put(path, 1)
    with Store(path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.write(*generation(2, 1000))
        assert names(path) == ["run.h5", "run.h5.lock"]
    assert found(path)[0] == 1


def test_unstorable_arrays_change_nothing(path):
    put(path, 1)
    with Store(path) as store:
        with pytest.raises(TypeError, match="'x' has dtype"):
            store.write({}, {"x": np.array("text")})
        assert names(path) == ["run.h5", "run.h5.lock"]
    assert found(path)[0] == 1


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
def test_generations_work_without_links(path, code, monkeypatch):
    monkeypatch.setattr(os, "link", failing(os.link, code))
    with Store(path) as store:
        for step in (1, 2, 3):
            store.write(*generation(step, 1000))
    assert steps(path) == [3, 2]
    assert names(path) == ["run.h5", "run.h5.previous"]


def test_missing_locks_are_logged(path, caplog, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", failing(fcntl.flock, errno.ENOSYS))
    with caplog.at_level(logging.WARNING, "batchkit"):
        put(path, 1)
    assert "no locks" in caplog.text
    assert found(path)[0] == 1


def test_files_are_synced_before_they_are_renamed(path, monkeypatch):
    """The order without which a power cut could lose both generations."""
    put(path, 1)
    calls = []
    fsync, replace, link = os.fsync, os.replace, os.link

    def base(name):
        return re.sub(r"\.[0-9a-f]{8}\.tmp", ".OWN.tmp", os.path.basename(name))

    def spy_fsync(file):
        calls.append(("fsync", base(os.readlink(f"/proc/self/fd/{file}"))))
        fsync(file)

    def spy_names(name, call):
        def spy(old, new):
            calls.append((name, base(old), base(new)))
            call(old, new)

        return spy

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_names("replace", replace))
    monkeypatch.setattr(os, "link", spy_names("link", link))
    put(path, 2)
    assert calls == [
        ("fsync", "run.h5.OWN.tmp"),
        ("link", "run.h5", "run.h5.previous.tmp"),
        ("replace", "run.h5.previous.tmp", "run.h5.previous"),
        ("replace", "run.h5.OWN.tmp", "run.h5"),
        ("fsync", os.path.basename(os.path.dirname(path))),
    ]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"Make the folder .*none'"):
        put(str(tmp_path / "none" / "run.h5"), 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Not a directory"):
        put(str(tmp_path / "file" / "run.h5"), 1)


def test_two_runs_of_one_process_cannot_share_a_file(path):
    with Store(path):
        words = rf"in use by process {os.getpid()} \(this process\)\. Wait"
        with pytest.raises(CheckpointError, match=words), Store(path):
            pass
        assert names(path) == ["run.h5.lock"]
    with Store(path):
        pass


@pytest.fixture
def elsewhere(path, monkeypatch):
    """The lock of a process on another host, which shows no sign of life by itself."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(_lock, "_SILENCE", 0.6)
    with open(f"{path}.lock", "w+") as file:
        file.write("12 node7 boot7 0a1b2c3d touched\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def test_lock_of_a_lost_host_is_taken_over(path, elsewhere, caplog):
    with Store(path) as store:
        store.write(*generation(1, 1000))
        assert "no sign of life of process 12 on node7 in 1 s" in caplog.text
        # It is gone for the process that had it, and not for others.
        with pytest.raises(CheckpointError, match="is in use by process"):
            Store(path).__enter__()
        assert not os.path.samestat(
            os.fstat(elsewhere.fileno()), os.stat(f"{path}.lock")
        )


def test_lock_of_a_live_host_excludes_this_one(path, elsewhere):
    done = threading.Event()

    def live():
        while not done.wait(0.05):
            os.utime(elsewhere.fileno())

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(CheckpointError, match="in use by process 12 on node7"):
            Store(path).__enter__()
    finally:
        done.set()
        thread.join()
    assert os.path.samestat(os.fstat(elsewhere.fileno()), os.stat(f"{path}.lock"))


def test_lock_that_never_shows_life_is_not_taken_over(path, elsewhere):
    """Owners of earlier versions touch nothing."""
    elsewhere.seek(0)
    elsewhere.truncate()
    elsewhere.write("12 node7\n")
    elsewhere.flush()
    with pytest.raises(CheckpointError, match="in use by process 12 on node7"):
        Store(path).__enter__()


def test_process_that_was_taken_for_lost_writes_no_more(path):
    with Store(path) as store:
        store.write(*generation(1, 1000))
        os.unlink(f"{path}.lock")
        # Nobody has taken over, so nothing is lost.
        store.write(*generation(2, 1000))
        with Store(path) as other:
            other.write(*generation(3, 1000))
            with pytest.raises(CheckpointError, match="was taken over by process"):
                store.write(*generation(4, 1000))
            saved = other.read()
            assert saved is not None
            assert step_of(*decode(*saved)) == 3
        assert names(path) == ["run.h5", "run.h5.previous"]


def test_lock_shows_signs_of_life(path, monkeypatch):
    monkeypatch.setattr(_lock, "_LIFE", 0.05)
    with Store(path):
        os.utime(f"{path}.lock", (0, 0))
        end = time.monotonic() + 10
        while os.stat(f"{path}.lock").st_mtime == 0:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_host_of_the_same_name_is_another_one_after_a_boot(path, elsewhere, caplog):
    elsewhere.seek(0)
    elsewhere.truncate()
    elsewhere.write(f"1 {socket.gethostname()} boot7 0a1b2c3d touched\n")
    elsewhere.flush()
    put(path, 1)
    assert "no sign of life" in caplog.text


def test_lock_that_is_released_while_it_is_watched_is_taken(path, elsewhere, caplog):
    def release():
        os.unlink(f"{path}.lock")
        fcntl.flock(elsewhere, fcntl.LOCK_UN)

    thread = threading.Timer(0.2, release)
    thread.start()
    put(path, 1)
    thread.join()
    assert "no sign of life" not in caplog.text


@pytest.mark.parametrize("code", [errno.ESTALE, errno.ENOENT])
def test_file_of_the_lock_that_another_host_removed(path, monkeypatch, code):
    """NFS says of an open file that it is stale, a local file system nothing."""
    fstat = os.fstat
    with Store(path) as store:
        store.write(*generation(1, 1000))
        own = store._lock._file
        assert own is not None
        os.unlink(f"{path}.lock")
        with open(f"{path}.lock", "w") as file:
            file.write("12 node7 boot7 0a1b2c3d touched\n")

        def stale(file):
            if file == own and code == errno.ESTALE:
                raise OSError(code, os.strerror(code))
            return fstat(file)

        monkeypatch.setattr(os, "fstat", stale)
        with pytest.raises(CheckpointError, match="taken over by process 12 on node7"):
            store.write(*generation(2, 1000))
    with pytest.raises(OSError, match="Bad file descriptor"):
        fstat(own)
    assert names(path) == ["run.h5", "run.h5.lock"]


@pytest.mark.parametrize("when", ["open", "fsync"])
@pytest.mark.parametrize("owner", ["writes", "is writing"])
def test_process_that_comes_back_while_it_writes_replaces_nothing(
    path, monkeypatch, when, owner
):
    """As on a network file system, which lets a process wait while it is cut off."""
    calls = {"open": builtins.open, "fsync": os.fsync}
    module = builtins if when == "open" else os
    others = []

    def cut_off(*args, **kwargs):
        monkeypatch.setattr(module, when, calls[when])
        os.unlink(f"{path}.lock")
        other = others.append(Store(path)) or others[0]
        other.__enter__()
        if owner == "writes":
            other.write(*generation(50, 1000))
        else:
            new = other._temporary(other._lock.token)
            with calls["open"](new, "xb") as file:
                file.write(b"half")
        return calls[when](*args, **kwargs)

    with Store(path) as store:
        store.write(*generation(1, 1000))
        monkeypatch.setattr(module, when, cut_off)
        with pytest.raises(CheckpointError, match="was taken over by process"):
            store.write(*generation(2, 1000))
    (other,) = others
    if owner == "is writing":
        assert os.path.exists(other._temporary(other._lock.token))
        os.unlink(other._temporary(other._lock.token))
        other.write(*generation(50, 1000))
    assert step_of(*read_file(path)) == 50
    other.__exit__()
    assert names(path) == ["run.h5", "run.h5.previous"]


def test_owner_whose_file_system_cannot_touch_is_not_taken_over(
    path, monkeypatch, caplog
):
    def failing_utime(*args, **kwargs):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "utime", failing_utime)
    monkeypatch.setattr(_lock, "_SILENCE", 0.3)
    with Store(path):
        with open(f"{path}.lock") as file:
            assert "touched" not in file.read()
        monkeypatch.setattr(_lock, "_this_boot", lambda: "another")
        with pytest.raises(CheckpointError, match="is in use by"):
            Store(path).__enter__()
