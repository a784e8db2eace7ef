//! Open files that travel over the local socket.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::AsFd;
use std::path::Path;

use damselfly_transport::local::{
    BindOptions, Connection, DescriptorError, Direction, Listener, Token, hand_over,
};

const TOKEN: Token = Token([7; 16]);

/// Hands `file` over to a daemon that takes files for `direction`. What both sides say of it.
async fn travel(
    file: impl AsFd,
    direction: Direction,
) -> (Result<(), DescriptorError>, Result<File, DescriptorError>) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut listener = Listener::bind(BindOptions::new(dir.path().join("d.sock"))).expect("free");
    let path = listener.path().to_owned();
    let daemon = async {
        let connection = listener.accept().await;
        let Connection::Descriptor(mut stream) = connection else { panic!("{connection:?}") };
        assert_eq!(stream.token().await.expect("open"), TOKEN);
        stream.answer(Ok(())).await.expect("open");
        let came = stream.descriptor(direction).await;
        let answer = came.as_ref().map(|_| ()).map_err(ToString::to_string);
        // A client that broke off hears nothing.
        let _told = stream.answer(answer).await;
        came
    };
    tokio::join!(hand_over(&path, &TOKEN, file), daemon)
}

fn refused(said: (Result<(), DescriptorError>, Result<File, DescriptorError>)) -> String {
    let why = said.1.expect_err("refused").to_string();
    match said.0.expect_err("refused") {
        DescriptorError::Refused(reason) => assert_eq!(reason, why),
        other => panic!("{other:?}"),
    }
    why
}

#[tokio::test]
async fn both_sides_have_the_same_open_file() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"content").unwrap();
    file.rewind().unwrap();
    let (told, came) = travel(&file, Direction::FromClient).await;
    told.unwrap();
    let mut came = came.unwrap();
    let mut content = String::new();
    came.read_to_string(&mut content).unwrap();
    assert_eq!(content, "content");
    assert_eq!(file.stream_position().unwrap(), 7, "they share their offset");
    travel(&file, Direction::ToClient).await.1.unwrap();
}

#[tokio::test]
async fn a_file_that_cannot_be_used_so_is_refused_on_both_sides() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("f");
    let written = OpenOptions::new().write(true).create(true).truncate(true).open(&path).unwrap();
    let read = File::open(&path).unwrap();
    let appended = OpenOptions::new().append(true).open(&path).unwrap();
    let pathed = rustix::fs::open(&path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let why = refused(travel(&written, Direction::FromClient).await);
    assert!(why.contains("open for writing only"), "{why}");
    let why = refused(travel(&read, Direction::ToClient).await);
    assert!(why.contains("open for reading only"), "{why}");
    let why = refused(travel(&appended, Direction::ToClient).await);
    assert!(why.contains("without O_APPEND"), "{why}");
    let why = refused(travel(&pathed, Direction::FromClient).await);
    assert!(why.contains("for its path only"), "{why}");
}

#[tokio::test]
async fn only_regular_files_of_real_file_systems_are_taken() {
    for (path, what) in [("/dev/null", "a device"), ("/", "a directory"), ("/proc/self/status", "kernel")] {
        let why = refused(travel(File::open(path).unwrap(), Direction::FromClient).await);
        assert!(why.contains(what), "{path}: {why}");
    }
    let (reader, _writer) = std::io::pipe().unwrap();
    let why = refused(travel(&reader, Direction::FromClient).await);
    assert!(why.contains("a FIFO"), "{why}");
}

#[tokio::test]
async fn one_descriptor_comes_or_none_is_taken() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let file = tempfile::tempfile().unwrap();
    for count in [0, 2, 5] {
        let dir = tempfile::tempdir().unwrap();
        let mut listener = Listener::bind(BindOptions::new(dir.path().join("d.sock"))).unwrap();
        let path = listener.path().to_owned();
        let client = async {
            let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
            stream.write_all(&[b"DFFD".as_slice(), &TOKEN.0].concat()).await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), 0);
            let files = vec![file.as_fd(); count];
            let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if count > 0 {
                assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
            }
            let bytes = [std::io::IoSlice::new(&[0])];
            rustix::net::sendmsg(&stream, &bytes, &mut control, SendFlags::empty()).unwrap();
        };
        let daemon = async {
            let Connection::Descriptor(mut stream) = listener.accept().await else { panic!("not one") };
            stream.token().await.unwrap();
            stream.answer(Ok(())).await.unwrap();
            stream.descriptor(Direction::FromClient).await
        };
        let ((), came) = tokio::join!(client, daemon);
        assert!(came.is_err(), "{count}: {came:?}");
    }
}

#[tokio::test]
async fn a_daemon_that_says_no_is_understood() {
    let dir = tempfile::tempdir().unwrap();
    let mut listener = Listener::bind(BindOptions::new(dir.path().join("d.sock"))).unwrap();
    let path = listener.path().to_owned();
    let daemon = async {
        let Connection::Descriptor(mut stream) = listener.accept().await else { panic!("not one") };
        stream.token().await.unwrap();
        stream.answer(Err("no room ".repeat(1000))).await.unwrap();
    };
    let file = tempfile::tempfile().unwrap();
    let (told, ()) = tokio::join!(hand_over(&path, &TOKEN, &file), daemon);
    let why = told.unwrap_err().to_string();
    assert!(why.contains("does not take") && why.contains("no room") && why.len() < 1200, "{why}");
    let gone = hand_over(Path::new("/nowhere/d.sock"), &TOKEN, &file).await;
    assert!(matches!(gone, Err(DescriptorError::Io(_))), "{gone:?}");
}
