//! `sampan-demo [PORT]`: a web server of a few hundred kilobytes that shows a cluster from inside a pod.
//!
//! It is the first pod of `integration/up` and the subject of the network tests, so its answers are about who speaks
//! with whom: `/` a page, `/hostname`, `/client` (the address that the server sees), `/env`, `/echo` (lines back over one
//! long connection), `/healthz`; a datagram to the same port is answered with host name and client. As pid 1 it must take
//! SIGTERM itself: the kernel ignores signals that pid 1 has no handler for. `client.rs` says what it asks others.

mod client;
mod page;

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::thread;

use nix::sys::signal::{SigSet, Signal};

/// Requests longer than this are refused with 431.
const REQUEST_BYTES_MAX: u64 = 16 * 1024;
const DATAGRAM_BYTES_MAX: usize = 2048;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(request) = client::Request::parse(&words) {
        return match request.and_then(|request| request.run(io::stdout())) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => fail(&failure.to_string()),
        };
    }
    match words.first().map_or("8080", String::as_str).parse() {
        Ok(port) => serve_until_told(port),
        Err(error) => fail(&format!("the port must be a number from 0 to 65535: {error}")),
    }
}

fn serve_until_told(port: u16) -> ExitCode {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    // Blocked before any thread starts, so that every thread inherits the mask and only `wait` sees them.
    if let Err(error) = signals.thread_block() {
        return fail(&format!("block signals: {error}"));
    }
    let listener = match listen(port) {
        Ok(listener) => listener,
        Err(error) => return fail(&format!("listen on port {port}: {error}")),
    };
    let address = match listener.local_addr() {
        Ok(address) => address,
        Err(error) => return fail(&format!("the address served: {error}")),
    };
    let socket = match UdpSocket::bind(address) {
        Ok(socket) => socket,
        Err(error) => return fail(&format!("listen for datagrams on {address}: {error}")),
    };
    say(&format!("{} serves {address}", page::hostname()));
    thread::spawn(move || accept(&listener));
    thread::spawn(move || answer_datagrams(&socket));
    match signals.wait() {
        Ok(signal) => say(&format!("{signal}: good bye")),
        Err(error) => return fail(&format!("wait for signals: {error}")),
    }
    ExitCode::SUCCESS
}

/// Both families where the kernel has IPv6, IPv4 alone otherwise.
fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))
}

fn accept(listener: &TcpListener) {
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                thread::spawn(move || {
                    // A client that goes away in mid-answer is no event here.
                    let _gone = serve(&stream);
                });
            }
            Err(error) => say(&format!("accept: {error}")),
        }
    }
}

/// Every datagram comes back with this host's name and the address it came from.
fn answer_datagrams(socket: &UdpSocket) {
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, client)) => {
                let text = String::from_utf8_lossy(&buffer[..length]);
                let answer = format!("{} {} {text}\n", page::hostname(), client_ip(client));
                // A client that is gone needs no answer.
                let _gone = socket.send_to(answer.as_bytes(), client);
            }
            Err(error) => say(&format!("receive: {error}")),
        }
    }
}

/// Answers requests over one connection until the client ends it.
fn serve(stream: &TcpStream) -> io::Result<()> {
    let client = stream.peer_addr()?;
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    while let Some(request) = read_request(&mut reader)? {
        match request.path.as_str() {
            "/echo" => return echo(&mut reader, writer),
            "/" => respond(writer, "200 OK", "text/html; charset=utf-8", &page::html(client_ip(client)))?,
            "/hostname" => respond(writer, "200 OK", "text/plain", &format!("{}\n", page::hostname()))?,
            "/client" => respond(writer, "200 OK", "text/plain", &format!("{}\n", client_ip(client)))?,
            "/env" => respond(writer, "200 OK", "text/plain", &page::environment())?,
            "/healthz" => respond(writer, "200 OK", "text/plain", "ok\n")?,
            _ => respond(writer, "404 Not Found", "text/plain", "there is /, /hostname, /client, /env, /echo\n")?,
        }
        writer.flush()?;
        if request.is_last {
            break;
        }
    }
    Ok(())
}

struct Request {
    path: String,
    /// The client waits for the end of the connection (RFC 9112, section 9.3).
    is_last: bool,
}

/// The next request; `None` at the end of the connection.
fn read_request(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<Request>> {
    let mut limited = io::Read::take(reader, REQUEST_BYTES_MAX);
    let mut first = String::new();
    if limited.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut is_last = first.trim_end().ends_with("HTTP/1.0");
    let mut line = String::new();
    while limited.read_line(&mut line)? > 0 && !line.trim().is_empty() {
        let field = line.split_once(':').map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim()));
        if let Some((name, value)) = field
            && name == "connection"
        {
            is_last = value.eq_ignore_ascii_case("close");
        }
        line.clear();
    }
    let target = first.split_whitespace().nth(1).unwrap_or("/");
    Ok(Some(Request { path: target.split('?').next().unwrap_or("/").to_owned(), is_last }))
}

fn respond(mut writer: &TcpStream, status: &str, content_type: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let answer = format!("HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n{body}");
    writer.write_all(answer.as_bytes())
}

/// One established connection for as long as the client likes: every line comes back with this host's name.
fn echo(reader: &mut BufReader<&TcpStream>, mut writer: &TcpStream) -> io::Result<()> {
    writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n")?;
    let hostname = page::hostname();
    for line in reader.lines() {
        writer.write_all(format!("{hostname} {}\n", line?).as_bytes())?;
    }
    Ok(())
}

/// IPv4 clients reach an IPv6 socket as `::ffff:a.b.c.d`.
fn client_ip(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}

fn say(line: &str) {
    // Nobody may be reading the log; that is no reason to end.
    let _nobody_reads = writeln!(io::stdout(), "{line}");
}

fn fail(line: &str) -> ExitCode {
    let _nobody_reads = writeln!(io::stderr(), "sampan-demo: {line}");
    ExitCode::FAILURE
}
