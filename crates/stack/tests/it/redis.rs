use std::io::{Read, Write};
use std::net::TcpStream;

use stack::{Options, Stack};

#[test]
fn it_answers_and_comes_back_on_the_same_port() {
    let stack = Stack::up(
        Options::default()
            .without_postgres()
            .without_nats()
            .redis(true),
    )
    .unwrap();
    let addr = stack.redis().addr();

    stack.redis().kill();
    assert!(TcpStream::connect(addr).is_err());
    stack.redis().start();

    let mut stream = TcpStream::connect(addr).unwrap();
    stream.write_all(b"PING\r\n").unwrap();
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+PONG\r\n");
}
