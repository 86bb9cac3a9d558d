use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use stack::{Direction, Relay, eventually};

use crate::DEADLINE;

/// A server that sends back what it gets, for as long as the test process lives.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut back = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut stream, &mut back);
                let _ = back.shutdown(Shutdown::Write);
            });
        }
    });
    addr
}

fn connect(relay: &Relay) -> TcpStream {
    let stream = TcpStream::connect(relay.addr()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn exchange(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, text);
}

#[test]
fn bytes_pass_unchanged_and_are_counted_and_the_end_of_the_stream_passes_too() {
    let relay = Relay::to(echo()).unwrap();
    let mut stream = connect(&relay);
    let sent: Vec<u8> = (0..3_000_000_u32)
        .map(|index| (index % 251) as u8)
        .collect();

    let mut writer = stream.try_clone().unwrap();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&copy).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    writing.join().unwrap();

    assert!(received == sent, "{} bytes came back", received.len());
    let counted = || (relay.to_server_bytes(), relay.to_client_bytes());
    eventually(DEADLINE, "all bytes counted", || {
        counted() == (3_000_000, 3_000_000)
    });
    assert_eq!(relay.accepted(), 1);
}

#[test]
fn a_cut_resets_connections_and_refuses_new_ones_until_healed() {
    let relay = Relay::to(echo()).unwrap();
    let mut stream = connect(&relay);
    exchange(&mut stream, b"before");

    relay.cut();

    let error = stream.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let error = TcpStream::connect(relay.addr()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    relay.heal();
    exchange(&mut connect(&relay), b"after");
}

#[test]
fn a_stalled_direction_delivers_nothing_and_pushes_back_on_the_sender() {
    let relay = Relay::to(echo()).unwrap();
    let mut stream = connect(&relay);
    exchange(&mut stream, b"before");
    let delivered = b"before".len() as u64;
    eventually(DEADLINE, "its bytes counted", || {
        relay.to_server_bytes() == delivered
    });

    relay.stall(Direction::ToServer);
    stream.set_nonblocking(true).unwrap();
    let block = vec![7; 64 * 1024];
    let mut accepted = 0;
    let full_since = eventually(DEADLINE, "a sender that may not send for 100 ms", {
        let mut blocked_since = None;
        move || {
            while let Ok(length) = (&stream).write(&block) {
                accepted += length;
                blocked_since = None;
            }
            let since = *blocked_since.get_or_insert_with(Instant::now);
            (Duration::from_millis(100) < since.elapsed())
                .then(|| (accepted, stream.try_clone().unwrap()))
        }
    });
    let (accepted, mut stream) = full_since;
    assert_eq!(relay.to_server_bytes(), delivered);

    relay.heal();
    stream.set_nonblocking(false).unwrap();
    let mut answer = vec![0; accepted];
    stream.read_exact(&mut answer).unwrap();
    assert!(answer.iter().all(|byte| *byte == 7));
}

#[test]
fn a_delay_applies_to_each_direction() {
    let relay = Relay::to(echo()).unwrap();
    let mut stream = connect(&relay);
    exchange(&mut stream, b"before");
    relay.delay(Duration::from_millis(50));

    let started = Instant::now();
    exchange(&mut stream, b"late");

    assert!(Duration::from_millis(100) <= started.elapsed());
}

#[test]
fn a_client_of_a_server_that_is_down_is_reset() {
    let unused = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let relay = Relay::to(unused).unwrap();
    let mut stream = connect(&relay);

    let outcome = stream.read(&mut [0; 1]);

    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionReset);
}
