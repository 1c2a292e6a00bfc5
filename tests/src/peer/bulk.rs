//! Moving many bytes and checking each: what jumbo frames and segmentation offload are tested with.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::client::at;
use super::protocol::{Direction, Failure, Step, Transfer};
use super::{PULL, PUSH, server, socket};

const CHUNK: usize = 256 * 1024;
const MEBIBYTE: u64 = 1024 * 1024;
/// A prime, so that the pattern never lines up with packets and a lost or swapped segment shows.
const PERIOD: u64 = 65_521;

/// Transfers over a new connection.
pub(super) fn transfer(
    to: SocketAddr,
    direction: Direction,
    mebibytes: u32,
    timeout: Duration,
) -> Result<Transfer, Failure> {
    let stream = socket::connect(to, 0, timeout)?;
    stream
        .set_read_timeout(Some(timeout))
        .map_err(at(Step::Open))?;
    let mut input = BufReader::with_capacity(CHUNK, stream.try_clone().map_err(at(Step::Open))?);
    let start = Instant::now();
    let count = u64::from(mebibytes) * MEBIBYTE;
    let arrived = exchange(&stream, &mut input, direction, count)?;
    let mebibytes_per_second = f64::from(mebibytes) / start.elapsed().as_secs_f64();
    let mut line = String::new();
    input.read_line(&mut line).map_err(at(Step::Receive))?;
    let answer = server::parse(&line, to, 0).map_err(at(Step::Receive))?;
    let intact = arrived && answer.text != "damaged";
    let retransmits = socket::retransmits(&stream).map_err(at(Step::Receive))?;
    Ok(Transfer {
        server: answer.server,
        mebibytes_per_second,
        intact,
        retransmits,
    })
}

/// Sends `count` bytes of the pattern.
pub(super) fn send(output: &mut impl Write, count: u64) -> io::Result<()> {
    let pattern = pattern();
    let mut sent = 0;
    while sent < count {
        let start = (sent % PERIOD) as usize;
        let length = (count - sent).min(CHUNK as u64) as usize;
        output.write_all(&pattern[start..start + length])?;
        sent += length as u64;
    }
    Ok(())
}

/// Takes `count` bytes in and tells whether all are as they should be.
pub(super) fn receive(input: &mut impl Read, count: u64) -> io::Result<bool> {
    let pattern = pattern();
    let mut buffer = vec![0; CHUNK];
    let (mut received, mut intact) = (0, true);
    while received < count {
        let wanted = (count - received).min(CHUNK as u64) as usize;
        let length = input.read(&mut buffer[..wanted])?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let start = (received % PERIOD) as usize;
        intact &= buffer[..length] == pattern[start..start + length];
        received += length as u64;
    }
    Ok(intact)
}

fn exchange(
    mut stream: &TcpStream,
    input: &mut BufReader<TcpStream>,
    direction: Direction,
    count: u64,
) -> Result<bool, Failure> {
    let word = match direction {
        Direction::Push => PUSH,
        Direction::Pull => PULL,
    };
    stream
        .write_all(format!("{word} {count}\n").as_bytes())
        .map_err(at(Step::Send))?;
    match direction {
        Direction::Push => send(&mut stream, count)
            .map(|()| true)
            .map_err(at(Step::Send)),
        Direction::Pull => receive(input, count).map_err(at(Step::Receive)),
    }
}

/// The pattern, repeated so far that a chunk can start anywhere in its first period.
fn pattern() -> Vec<u8> {
    (0..PERIOD as u32 + CHUNK as u32)
        .map(|at| ((at % PERIOD as u32).wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_byte_is_noticed() {
        let mut bytes = Vec::new();
        send(&mut bytes, 3 * MEBIBYTE + 1).unwrap();
        assert!(receive(&mut bytes.as_slice(), 3 * MEBIBYTE + 1).unwrap());
        bytes[2_000_000] ^= 1;
        assert!(!receive(&mut bytes.as_slice(), 3 * MEBIBYTE + 1).unwrap());
    }
}
