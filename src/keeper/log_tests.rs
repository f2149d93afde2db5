//! The log copier on real pipes, files and terminals.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size};

use super::log::{Event, LogHandle, LogId, LogSource};
use super::log_format::LINE_LIMIT;
use super::note::NotePage;

/// Set in the process that copies and is killed: the directory of its container.
const COPIER: &str = "PODWRIGHT_TEST_LOG_COPIER";

const NAMES: [&str; 2] = ["stdout", "stderr"];

/// A container's note, log and FIFOs, as they are in the state directory.
struct Place(PathBuf);

impl Place {
    fn new(path: &Path) -> Self {
        for name in NAMES {
            rustix::fs::mknodat(CWD, path.join(name), rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        }
        Self(path.to_owned())
    }

    fn open(&self, name: &str, flags: OFlags) -> OwnedFd {
        let flags = flags | OFlags::CLOEXEC;
        rustix::fs::open(self.0.join(name), flags, Mode::from_raw_mode(0o640)).unwrap()
    }

    fn log(&self) -> OwnedFd {
        self.open("log", OFlags::RDWR | OFlags::APPEND | OFlags::CREATE)
    }

    fn note(&self) -> Arc<NotePage> {
        let file = self.open("note", OFlags::RDWR | OFlags::CREATE);
        Arc::new(NotePage::map(file.as_fd()).unwrap())
    }

    fn source(&self) -> LogSource {
        let [stdout, stderr] = NAMES.map(|name| self.open(name, OFlags::RDONLY | OFlags::NONBLOCK));
        LogSource::Pipes { stdout, stderr }
    }

    /// As the container has it.
    fn output(&self, stream: usize) -> File {
        self.open(NAMES[stream], OFlags::RDWR).into()
    }

    fn read(&self) -> Vec<u8> {
        std::fs::read(self.0.join("log")).unwrap()
    }
}

/// What a stream's program has written, put together again from the log's lines.
fn text_of(log: &[u8]) -> [Vec<u8>; 2] {
    let mut text = [Vec::new(), Vec::new()];
    for line in log.split_inclusive(|b| *b == b'\n') {
        let [_, stream, tag, rest] = fields(line);
        let text = &mut text[NAMES.iter().position(|name| name.as_bytes() == stream).unwrap()];
        text.extend_from_slice(&rest[..rest.len() - usize::from(tag == b"P")]);
    }
    text
}

/// Timestamp, stream, tag, text with its newline.
fn fields(line: &[u8]) -> [&[u8]; 4] {
    let mut fields = line.splitn(4, |b| *b == b' ');
    let fields = [(); 4].map(|()| fields.next().unwrap_or_else(|| panic!("no log line: {line:?}")));
    assert!(fields[0].len() == 30 && fields[0].ends_with(b"Z") && line.ends_with(b"\n"), "{line:?}");
    fields
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// The n-th line of a program: mostly short, some of several pieces.
fn line(n: u64) -> Vec<u8> {
    let mut random = Random(n + 1);
    random.below(2);
    let length = if random.below(50) == 0 { random.below(50_000) } else { random.below(200) };
    let mut line = format!("line {n} ").into_bytes();
    line.extend((0..length).map(|i| b'a' + ((n + i) % 26) as u8));
    line.push(b'\n');
    line
}

/// A program that writes numbered lines in pieces of any size until it is told to stop, and then
/// tells how many they were.
fn writer(mut output: File, seed: u64, stop: Arc<AtomicBool>) -> JoinHandle<u64> {
    thread::spawn(move || {
        let mut random = Random(seed);
        for n in 0.. {
            if stop.load(Relaxed) {
                return n;
            }
            let line = line(n);
            let mut rest = &line[..];
            while !rest.is_empty() {
                let piece = 1 + random.below(rest.len() as u64) as usize;
                output.write_all(&rest[..piece]).unwrap();
                rest = &rest[piece..];
            }
            if random.below(20) == 0 {
                thread::sleep(Duration::from_micros(random.below(300)));
            }
        }
        0
    })
}

fn assert_lines(text: &[u8], count: u64) {
    let mut rest = text;
    for n in 0..count {
        let expected = line(n);
        let end = expected.len().min(rest.len());
        assert_eq!(
            String::from_utf8_lossy(&rest[..end]),
            String::from_utf8_lossy(&expected),
            "at line {n} of {count}"
        );
        rest = &rest[end..];
    }
    assert!(
        rest.is_empty(),
        "doubled or foreign: {:?}",
        String::from_utf8_lossy(&rest[..rest.len().min(200)])
    );
}

/// Waits for an event; others are dropped.
fn wait_for(log: &LogHandle, wanted: impl Fn(&Event) -> bool) {
    loop {
        let fd = log.event_fd();
        let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
        if log.events().iter().any(&wanted) {
            return;
        }
    }
}

fn drain(log: &LogHandle, id: LogId) {
    log.drain(id);
    wait_for(log, |event| *event == Event::Drained(id));
}

/// No test: the process that [`a_killed_copier_loses_and_doubles_nothing`] kills.
#[test]
fn copier_process() {
    let Some(path) = std::env::var_os(COPIER) else { return };
    let place = Place(path.into());
    let log = LogHandle::start().unwrap();
    log.add(1, place.note(), place.source(), Some(place.log()));
    println!("ready");
    loop {
        thread::park();
    }
}

#[test]
fn a_killed_copier_loses_and_doubles_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new(directory.path());
    let _daemon = place.source();
    let stop = Arc::new(AtomicBool::new(false));
    let outputs = [place.output(0), place.output(1)];
    // Long lines do not fit into this one.
    fcntl_setpipe_size(&outputs[1], 4096).unwrap();
    let writers: Vec<_> = outputs.into_iter().zip([3, 5]).map(|(o, s)| writer(o, s, stop.clone())).collect();
    let mut random = Random(std::process::id().into());
    for _ in 0..200 {
        let mut copier = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "keeper::log_tests::copier_process", "--nocapture", "--test-threads=1"])
            .env(COPIER, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        if random.below(4) > 0 {
            let mut stdout = copier.stdout.take().unwrap();
            let (mut seen, mut chunk) = (Vec::new(), [0; 256]);
            while !seen.windows(5).any(|part| part == b"ready") {
                let n = stdout.read(&mut chunk).unwrap();
                assert!(n > 0, "the copier ended");
                seen.extend_from_slice(&chunk[..n]);
            }
        }
        thread::sleep(Duration::from_micros(random.below(8_000)));
        copier.kill().unwrap();
        copier.wait().unwrap();
    }
    let log = LogHandle::start().unwrap();
    log.add(1, place.note(), place.source(), Some(place.log()));
    stop.store(true, Relaxed);
    let counts: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    drain(&log, 1);
    let log = place.read();
    // Nothing but its length splits a line.
    assert!(log.split_inclusive(|b| *b == b'\n').map(fields).all(|[_, _, tag, text]| {
        text.len() <= LINE_LIMIT + 1 && (tag == b"F" || text.len() == LINE_LIMIT + 1)
    }));
    let text = text_of(&log);
    assert!(counts.iter().all(|count| *count > 200), "{counts:?}");
    assert_lines(&text[0], counts[0]);
    assert_lines(&text[1], counts[1]);
}

#[test]
fn reopening_under_load_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new(directory.path());
    let stop = Arc::new(AtomicBool::new(false));
    let writers = [0, 1].map(|stream| writer(place.output(stream), 7 + stream as u64, stop.clone()));
    let log = LogHandle::start().unwrap();
    log.add(1, place.note(), place.source(), Some(place.log()));
    let mut whole = Vec::new();
    for _ in 0..50 {
        thread::sleep(Duration::from_millis(2));
        std::fs::rename(place.0.join("log"), place.0.join("old")).unwrap();
        log.reopen(1, place.log());
        wait_for(&log, |event| *event == Event::Reopened(1));
        whole.extend(std::fs::read(place.0.join("old")).unwrap());
    }
    stop.store(true, Relaxed);
    let counts = writers.map(|writer| writer.join().unwrap());
    drain(&log, 1);
    whole.extend(place.read());
    let text = text_of(&whole);
    assert_lines(&text[0], counts[0]);
    assert_lines(&text[1], counts[1]);
}

/// A tmpfs of its own that is mounted nowhere.
struct SmallDisk(OwnedFd);

impl SmallDisk {
    fn new(size: &str) -> Self {
        use rustix::mount::*;
        let disk = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_set_string(&disk, "size", size).unwrap();
        fsconfig_create(&disk).unwrap();
        Self(fsmount(&disk, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap())
    }

    fn grow(&self, size: &str) {
        use rustix::mount::*;
        let disk = fspick(&self.0, "", FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC).unwrap();
        fsconfig_set_string(&disk, "size", size).unwrap();
        fsconfig_reconfigure(&disk).unwrap();
    }

    fn file(&self, name: &str) -> OwnedFd {
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
        rustix::fs::openat(&self.0, name, flags, Mode::from_raw_mode(0o640)).unwrap()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let file = rustix::fs::openat(&self.0, name, OFlags::RDONLY, Mode::empty()).unwrap();
        File::from(file).read_to_end(&mut bytes).unwrap();
        bytes
    }
}

#[test]
fn behaviour_39_a_full_disk_blocks_and_goes_on_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new(directory.path());
    let disk = SmallDisk::new("256k");
    let stop = Arc::new(AtomicBool::new(false));
    let writers = [0, 1].map(|stream| writer(place.output(stream), 9 + stream as u64, stop.clone()));
    let log = LogHandle::start().unwrap();
    log.add(1, place.note(), place.source(), Some(disk.file("log")));
    wait_for(&log, |event| *event == Event::Stalled(1, libc::ENOSPC));
    // The next file is on the same disk: what the old one has not whole goes there.
    log.reopen(1, disk.file("next"));
    wait_for(&log, |event| *event == Event::Reopened(1));
    // A keeper in place takes over while it is stalled.
    let held = log.stop();
    let log = LogHandle::start().unwrap();
    for held in held {
        log.add(held.id, held.note, held.source, held.file);
    }
    wait_for(&log, |event| *event == Event::Stalled(1, libc::ENOSPC));
    disk.grow("64m");
    wait_for(&log, |event| *event == Event::Resumed(1));
    stop.store(true, Relaxed);
    let counts = writers.map(|writer| writer.join().unwrap());
    drain(&log, 1);
    let mut whole = disk.read("log");
    // The old file may end with a part of a line, which the new one begins with.
    whole.truncate(memchr::memrchr(b'\n', &whole).map_or(0, |end| end + 1));
    whole.extend(disk.read("next"));
    let text = text_of(&whole);
    assert_lines(&text[0], counts[0]);
    assert_lines(&text[1], counts[1]);
}

#[test]
fn a_drain_ends_the_last_line_and_background_holders_are_copied_on() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new(directory.path());
    let mut output = place.output(0);
    let log = LogHandle::start().unwrap();
    log.add(1, place.note(), place.source(), Some(place.log()));
    output.write_all(b"whole\nhalf").unwrap();
    drain(&log, 1);
    let tags = |log: &[u8]| -> Vec<(Vec<u8>, Vec<u8>)> {
        let lines = log.split_inclusive(|b| *b == b'\n').map(fields);
        lines.map(|[_, _, tag, text]| (tag.to_vec(), text.to_vec())).collect()
    };
    let line = |tag: &[u8], text: &[u8]| (tag.to_vec(), text.to_vec());
    assert_eq!(tags(&place.read()), [line(b"F", b"whole\n"), line(b"P", b"half\n")]);
    output.write_all(b"\nmore\r\n").unwrap();
    drain(&log, 1);
    assert_eq!(tags(&place.read())[2..], [line(b"F", b"\n"), line(b"F", b"more\r\n")]);
    log.remove(1);
    wait_for(&log, |event| *event == Event::Removed(1));
}

#[test]
fn packets_and_stolen_bytes_cost_nobody_else_a_line() {
    let directories: Vec<_> = (0..22).map(|_| tempfile::tempdir().unwrap()).collect();
    let places: Vec<_> = directories.iter().map(|directory| Place::new(directory.path())).collect();
    let log = LogHandle::start().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    for (id, place) in places.iter().enumerate() {
        log.add(id as u64, place.note(), place.source(), Some(place.log()));
    }
    // 0 writes packets, 1 takes back what it wrote and changes its pipe's size.
    let packets = places[0].output(0);
    rustix::fs::fcntl_setfl(&packets, OFlags::RDWR | OFlags::DIRECT).unwrap();
    let mut writers: Vec<_> = vec![writer(packets, 11, stop.clone())];
    let (mut thief, stopped) = (places[1].output(0), stop.clone());
    rustix::fs::fcntl_setfl(&thief, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
    let thief = thread::spawn(move || {
        let mut random = Random(13);
        while !stopped.load(Relaxed) {
            let _ = thief.write(&line(random.below(1000)));
            let mut back = vec![0; random.below(3000) as usize];
            let _ = thief.read(&mut back);
            let _ = fcntl_setpipe_size(&thief, 4096 << random.below(5));
        }
    });
    writers.extend((2..22).map(|i| writer(places[i].output(i % 2), 20 + i as u64, stop.clone())));
    thread::sleep(Duration::from_millis(500));
    stop.store(true, Relaxed);
    thief.join().unwrap();
    let counts: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    for id in 0..22 {
        drain(&log, id);
    }
    for (i, count) in [0].into_iter().chain(2..22).zip(counts) {
        assert!(count > 0);
        assert_lines(&text_of(&places[i].read())[i % 2], count);
    }
}

#[test]
fn a_terminal_logs_its_lines_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new(directory.path());
    let master =
        rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let open = || File::from(rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap());
    let mut slave = open();
    let (pipe_r, pipe_w) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    let log = LogHandle::start().unwrap();
    log.add(1, place.note(), LogSource::Terminal { master, pipe_r, pipe_w }, Some(place.log()));
    let mut expected = Vec::new();
    for n in 0..3000 {
        slave.write_all(format!("line {n}\n").as_bytes()).unwrap();
        expected.extend(format!("line {n}\r\n").into_bytes());
    }
    slave.write_all(b"$ ").unwrap();
    expected.extend(b"$ ");
    drop(slave);
    drain(&log, 1);
    // Nobody had it open for a while.
    slave = open();
    slave.write_all(b"again\n").unwrap();
    expected.extend(b"again\r\n");
    while !place.read().ends_with(b"again\r\n") {
        thread::sleep(Duration::from_millis(1));
    }
    drop(slave);
    drain(&log, 1);
    let [stdout, stderr] = text_of(&place.read());
    assert_eq!(String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&expected));
    assert!(stderr.is_empty());
}

#[test]
fn behaviour_39_without_a_file_output_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new(directory.path());
    let mut output = place.output(1);
    let log = LogHandle::start().unwrap();
    log.add(1, place.note(), place.source(), None);
    output.write_all(&vec![b'x'; 1 << 20]).unwrap();
    drain(&log, 1);
    log.reopen(1, place.log());
    wait_for(&log, |event| *event == Event::Reopened(1));
    output.write_all(b"kept\n").unwrap();
    drain(&log, 1);
    assert_eq!(text_of(&place.read())[1], b"kept\n");
}

#[test]
fn what_was_lost_with_its_pipe_leaves_whole_lines() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new(directory.path());
    let disk = SmallDisk::new("64k");
    let output = place.output(0);
    let stop = Arc::new(AtomicBool::new(false));
    let log = LogHandle::start().unwrap();
    log.add(1, place.note(), place.source(), Some(disk.file("log")));
    let writer = writer(output, 15, stop.clone());
    wait_for(&log, |event| *event == Event::Stalled(1, libc::ENOSPC));
    stop.store(true, Relaxed);
    // Both holders and the container die: the pipe's bytes are gone, the file has part of a batch.
    drop(log.stop());
    let mut reader = place.output(0);
    rustix::fs::fcntl_setfl(&reader, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
    while !writer.is_finished() {
        let _ = reader.read(&mut [0; 65_536]);
    }
    while reader.read(&mut [0; 65_536]).is_ok() {}
    disk.grow("1m");
    let log = LogHandle::start().unwrap();
    log.add(1, place.note(), place.source(), Some(disk.file("log")));
    drain(&log, 1);
    reader.write_all(b"next life\n").unwrap();
    drain(&log, 1);
    let text = String::from_utf8(text_of(&disk.read("log"))[0].clone()).unwrap();
    assert!(text.ends_with("next life\n"), "{:?}", &text[text.len() - 300..]);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..Default::default()
    })]

    /// A torn or foreign note costs what it was about, never the lines that follow.
    #[test]
    fn a_damaged_note_stops_nothing(
        words in proptest::collection::vec(proptest::prelude::any::<u32>(), 256),
        small in proptest::prelude::any::<bool>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::new(directory.path());
        let mut outputs = [place.output(0), place.output(1)];
        let note = place.note();
        for (i, word) in words.iter().enumerate() {
            // Small words pass the first checks.
            let word = if small { word & 0x7_00ff } else { *word };
            note.pages().write(super::note::STREAM_AREA[0] + 4 * i, &word.to_ne_bytes());
        }
        let log = LogHandle::start().unwrap();
        outputs.iter_mut().for_each(|output| output.write_all(b"old\nhalf").unwrap());
        log.add(1, note, place.source(), Some(place.log()));
        drain(&log, 1);
        outputs.iter_mut().for_each(|output| output.write_all(b"\nnew\n").unwrap());
        drain(&log, 1);
        let log = place.read();
        let new = log.windows(6).filter(|part| part == b"F new\n").count();
        proptest::prop_assert_eq!(new, 2);
    }
}
