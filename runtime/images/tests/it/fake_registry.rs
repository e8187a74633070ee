//! A registry that misbehaves as the test wants. HTTP/1.1 over loopback, one thread per connection.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use runtime_images::Reference;

use crate::sample::Sample;

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub(crate) break_after: Option<usize>,
    /// Send so many bytes of the body and then nothing, until the other side goes away.
    pub(crate) stall_after: Option<usize>,
}

impl Answer {
    pub(crate) fn of(status: u16, body: &[u8]) -> Self {
        Self { status, body: body.to_vec(), ..Self::default() }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

type Behaviour = Box<dyn Fn(&Request, Answer) -> Answer + Send + Sync>;

struct Shelf {
    /// By path below `/v2/`.
    content: Mutex<BTreeMap<String, (String, Vec<u8>)>>,
    behaviour: Behaviour,
    seen: Mutex<Vec<Request>>,
}

/// Serves until the process ends; a blocked accept holds nothing but a port.
#[derive(Clone)]
pub(crate) struct FakeRegistry {
    shelf: Arc<Shelf>,
    pub(crate) address: String,
}

impl FakeRegistry {
    pub(crate) fn start() -> Self {
        Self::with(|_, answer| answer)
    }

    /// `behaviour` sees each request and what an honest registry would answer.
    pub(crate) fn with(behaviour: impl Fn(&Request, Answer) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shelf =
            Arc::new(Shelf { content: Mutex::default(), behaviour: Box::new(behaviour), seen: Mutex::default() });
        let serving = Arc::clone(&shelf);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shelf = Arc::clone(&serving);
                std::thread::spawn(move || serve(&shelf, &stream));
            }
        });
        Self { shelf, address }
    }

    pub(crate) fn add(&self, repository: &str, tag: &str, sample: &Sample) {
        for (digest, bytes) in &sample.blobs {
            self.put(&format!("{repository}/blobs/{digest}"), "application/octet-stream", bytes);
        }
        for target in [tag, &sample.manifest_digest()] {
            self.put(&format!("{repository}/manifests/{target}"), &sample.manifest_type, &sample.manifest);
        }
    }

    pub(crate) fn put(&self, path: &str, media_type: &str, bytes: &[u8]) {
        let mut content = self.shelf.content.lock().unwrap();
        content.insert(path.to_owned(), (media_type.to_owned(), bytes.to_vec()));
    }

    pub(crate) fn reference(&self, name: &str) -> Reference {
        Reference::parse(&format!("{}/{name}", self.address)).unwrap()
    }

    pub(crate) fn seen(&self) -> Vec<Request> {
        self.shelf.seen.lock().unwrap().clone()
    }

    /// Requests for blobs of layers, which are not the configuration.
    pub(crate) fn layer_requests(&self, sample: &Sample) -> Vec<Request> {
        let wanted = |request: &Request| sample.layers.iter().any(|layer| request.path.contains(layer.as_str()));
        self.seen().into_iter().filter(wanted).collect()
    }
}

fn serve(shelf: &Shelf, stream: &TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(request) = read_request(&mut reader) {
        shelf.seen.lock().unwrap().push(request.clone());
        let answer = (shelf.behaviour)(&request, honest(shelf, &request));
        if !write_answer(stream, &request, &answer) {
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    // What is no text is a TLS greeting; answering in plain words is what real servers do.
    if reader.read_line(&mut line).is_err() || line.bytes().next().is_some_and(|b| !b.is_ascii_uppercase()) {
        let _ = reader.get_mut().write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        return None;
    }
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    std::io::Read::read_exact(reader, &mut body).ok()?;
    Some(Request { method, path, headers, body })
}

fn honest(shelf: &Shelf, request: &Request) -> Answer {
    let path = request.path.split('?').next().unwrap().trim_start_matches("/v2/");
    let content = shelf.content.lock().unwrap();
    let Some((media_type, bytes)) = content.get(path) else {
        return Answer::of(404, br#"{"errors":[{"code":"UNKNOWN","message":"not on the shelf"}]}"#);
    };
    let start =
        request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let answer = match start {
        Some(start) if start < bytes.len() => {
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Answer::of(206, &bytes[start..]).header("Content-Range", &range)
        }
        _ => Answer::of(200, bytes),
    };
    answer.header("Content-Type", media_type)
}

fn write_answer(mut stream: &TcpStream, request: &Request, answer: &Answer) -> bool {
    let mut head = format!("HTTP/1.1 {} X\r\nContent-Length: {}\r\n", answer.status, answer.body.len());
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let body = if request.method == "HEAD" { &[][..] } else { &answer.body[..] };
    let sent = answer.break_after.or(answer.stall_after).map_or(body.len(), |limit| limit.min(body.len()));
    let written = stream.write_all(head.as_bytes()).is_ok() && stream.write_all(&body[..sent]).is_ok();
    if sent < body.len() && answer.stall_after.is_some() {
        let _ = std::io::Read::read(&mut stream, &mut [0]);
    }
    if sent < body.len() {
        let _ = stream.shutdown(std::net::Shutdown::Both);
        return false;
    }
    written
}
