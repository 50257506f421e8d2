//! The one program of ours inside a test guest.
//!
//! Without arguments it is the guest's first process: it obeys the host over the serial line and
//! serves checked traffic. `stream ADDRESS BYTES` and `echo ADDRESS` are the clients.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Instant;
use tandem_tests::lab::{agent, payload};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => run_agent(),
        ["stream", address, bytes] => {
            let bytes: u64 = bytes.parse().context("BYTES is a number")?;
            let start = Instant::now();
            payload::stream(peer(address)?, bytes, bytes)?;
            let rate = bytes as f64 * 8e-6 / start.elapsed().as_secs_f64();
            println!("{bytes} bytes each way, {rate:.0} Mbit/s");
            Ok(())
        }
        ["echo", address, ref sizes @ ..] => {
            let sizes: Vec<usize> = sizes.iter().map(|s| s.parse()).collect::<Result<_, _>>()?;
            Ok(payload::echo(peer(address)?, &sizes)?)
        }
        _ => bail!("usage: guest-agent [stream ADDRESS BYTES | echo ADDRESS SIZE…]"),
    }
}

fn peer(address: &str) -> Result<SocketAddr> {
    let address: IpAddr = address
        .parse()
        .with_context(|| format!("{address} is no address"))?;
    Ok((address, payload::PORT).into())
}

fn run_agent() -> Result<()> {
    std::thread::spawn(|| {
        if let Err(error) = payload::serve() {
            eprintln!("guest-agent: cannot serve traffic: {error}");
        }
    });
    agent::serve(std::io::stdin(), std::io::stdout(), Path::new("/tmp"))
}
