//! Answers the few HTTP requests of a daemon: health, metrics, administration.
//!
//! In: HTTP/1 connections. Out: small requests to a handler and its answers back. What must hold: what a client makes us
//! keep is at most [`BODY_BYTES_MAX`], and it cannot outstay [`READ_TIMEOUT`] while it sends.
//!
//! No routing and no streaming answers: a handler is one `match` over method and path. A service that needs more brings
//! its own router and uses [`serve_connections`].

mod connections;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
pub use hyper::{Method, StatusCode};
use tokio::net::TcpListener;

pub use self::connections::{GRACE, ListenError, READ_TIMEOUT, listen, serve_connections};
use crate::percent;
use crate::shutdown::Shutdown;

/// Connections that [`serve`] talks to at a time.
pub const CONNECTIONS_MAX: usize = 64;
/// A larger request body is answered with 413.
pub const BODY_BYTES_MAX: usize = 64 << 10;

/// What a handler gets.
#[derive(Debug, Clone)]
pub struct Request {
    /// GET stands for HEAD too; the answer's body is then left out.
    pub method: Method,
    /// The path as sent, from `/` on, without the query.
    pub path: String,
    /// The query's pairs in their order, decoded; a name without `=` has an empty value.
    pub query: Vec<(String, String)>,
    /// At most [`BODY_BYTES_MAX`].
    pub body: Bytes,
}

impl Request {
    /// The first value of a query parameter.
    pub fn query(&self, name: &str) -> Option<&str> {
        let pair = self.query.iter().find(|(key, _)| key == name)?;
        Some(&pair.1)
    }
}

/// What a handler gives back.
#[derive(Debug, Clone)]
pub struct Response {
    status: StatusCode,
    content_type: &'static str,
    allow: Option<&'static str>,
    body: Bytes,
}

impl Response {
    /// 200 with a body that is JSON already.
    pub fn json(body: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: "application/json",
            allow: None,
            body: body.into(),
        }
    }

    /// 200 with plain text. It is also what Prometheus expects of its exposition format.
    pub fn text(body: impl Into<Bytes>) -> Self {
        Self {
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            ..Self::json(body)
        }
    }

    /// `status` with `{"error": message}`.
    pub fn error(status: StatusCode, message: &str) -> Self {
        Self::json(format!("{{\"error\":{}}}", quoted(message))).with_status(status)
    }

    /// 404, naming the path.
    pub fn not_found(path: &str) -> Self {
        Self::error(StatusCode::NOT_FOUND, &format!("nothing at {path}"))
    }

    /// 405, naming the methods that are allowed: `"GET, HEAD"`.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let answer = Self::error(
            StatusCode::METHOD_NOT_ALLOWED,
            &format!("the method must be {allow}"),
        );
        Self {
            allow: Some(allow),
            ..answer
        }
    }

    /// The same answer under another status.
    #[must_use]
    pub fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// The same answer under another content type.
    #[must_use]
    pub fn with_content_type(self, content_type: &'static str) -> Self {
        Self {
            content_type,
            ..self
        }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    fn into_hyper(self) -> hyper::Response<Full<Bytes>> {
        let mut response = hyper::Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

/// Answers requests until the shutdown, then lets those in progress finish within [`GRACE`]. The handler is called in a
/// task per connection.
pub async fn serve<H, F>(listener: TcpListener, handler: H, shutdown: Shutdown)
where
    H: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let handler = Arc::new(handler);
    let service = move |request| {
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(answer(request, &*handler).await.into_hyper()) }
    };
    serve_connections(
        listener,
        Arc::new(service_fn(service)),
        CONNECTIONS_MAX,
        shutdown,
    )
    .await;
}

async fn answer<H, F>(request: hyper::Request<Incoming>, handler: &H) -> Response
where
    H: Fn(Request) -> F,
    F: Future<Output = Response>,
{
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX).collect();
    let body = match tokio::time::timeout(READ_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("the body is larger than {BODY_BYTES_MAX} bytes");
            return Response::error(StatusCode::PAYLOAD_TOO_LARGE, &message);
        }
        Ok(Err(error)) => return Response::error(StatusCode::BAD_REQUEST, &error.to_string()),
        Err(_) => return Response::error(StatusCode::REQUEST_TIMEOUT, "the body did not arrive"),
    };
    let method = if head.method == Method::HEAD {
        Method::GET
    } else {
        head.method
    };
    let path = head.uri.path().to_owned();
    let query = pairs(head.uri.query().unwrap_or(""));
    handler(Request {
        method,
        path,
        query,
        body,
    })
    .await
}

fn pairs(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| percent::decode(&text.replace('+', " "));
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    json.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => json.extend(['\\', character]),
            '\0'..='\x1f' => json.extend(format!("\\u{:04x}", u32::from(character)).chars()),
            _ => json.push(character),
        }
    }
    json.push('"');
    json
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::shutdown::Reason;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    async fn start<H, F>(handler: H) -> (SocketAddr, Shutdown, JoinHandle<()>)
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = Response> + Send + 'static,
    {
        let listener = listen(LOOPBACK, 0, "--port").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::new();
        let served = tokio::spawn(serve(listener, handler, shutdown.clone()));
        (address, shutdown, served)
    }

    async fn echo(request: Request) -> Response {
        match (&request.method, request.path.as_str()) {
            (&Method::GET, "/health") => Response::json(r#"{"status":"ok"}"#),
            (&Method::POST, "/echo") => Response::text(request.body),
            (&Method::GET, "/query") => Response::text(format!("{:?}", request.query)),
            (_, "/health") => Response::method_not_allowed("GET, HEAD"),
            (_, path) => Response::not_found(path),
        }
    }

    /// Sends bytes as they are and reads all that comes back until the server closes.
    async fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn ask(address: SocketAddr, line: &str) -> String {
        exchange(
            address,
            &format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"),
        )
        .await
    }

    #[tokio::test]
    async fn requests_reach_the_handler_and_answers_come_back() {
        let (address, ..) = start(echo).await;

        let health = ask(address, "GET /health").await;
        assert!(health.starts_with("HTTP/1.1 200 OK\r\n"), "{health}");
        assert!(
            health.contains("content-type: application/json\r\n"),
            "{health}"
        );
        assert!(health.ends_with("\r\n\r\n{\"status\":\"ok\"}"), "{health}");

        let posted =
            "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello";
        assert!(exchange(address, posted).await.ends_with("\r\n\r\nhello"));
    }

    #[tokio::test]
    async fn head_gets_the_head_of_get() {
        let (address, ..) = start(echo).await;

        let head = ask(address, "HEAD /health").await;

        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(
            head.contains("content-length: 15\r\n") && head.ends_with("\r\n\r\n"),
            "{head}"
        );
    }

    #[tokio::test]
    async fn unknown_paths_and_methods_are_answered_in_json() {
        let (address, ..) = start(echo).await;

        let missing = ask(address, "GET /a\"b").await;
        assert!(
            missing.starts_with("HTTP/1.1 404 Not Found\r\n"),
            "{missing}"
        );
        assert!(
            missing.ends_with(r#"{"error":"nothing at /a\"b"}"#),
            "{missing}"
        );

        let wrong = ask(address, "DELETE /health").await;
        assert!(
            wrong.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"),
            "{wrong}"
        );
        assert!(wrong.contains("allow: GET, HEAD\r\n"), "{wrong}");
    }

    #[tokio::test]
    async fn query_parameters_are_decoded_in_order() {
        let (address, ..) = start(echo).await;

        let answer = ask(
            address,
            "GET /query?stream=TEST&subjects=test.%3E&a+b&stream=2",
        )
        .await;

        let pairs = r#"[("stream", "TEST"), ("subjects", "test.>"), ("a b", ""), ("stream", "2")]"#;
        assert!(answer.ends_with(pairs), "{answer}");
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused() {
        let (address, ..) = start(echo).await;
        let length = BODY_BYTES_MAX + 1;
        let request = format!(
            "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        );

        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.write_all(&vec![b'x'; length]).await.unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();

        assert_eq!(&status, b"HTTP/1.1 413");
    }

    #[tokio::test]
    async fn garbage_is_answered_and_the_listener_lives_on() {
        let (address, ..) = start(echo).await;

        assert!(
            exchange(address, "\0\x01 not http\r\n\r\n")
                .await
                .starts_with("HTTP/1.1 400")
        );

        assert!(
            ask(address, "GET /health")
                .await
                .starts_with("HTTP/1.1 200")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_nothing_is_sent_away() {
        let (address, ..) = start(echo).await;

        assert_eq!(exchange(address, "GET /health HT").await, "");
        assert_eq!(exchange(address, "").await, "");
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_wait_for_a_place() {
        let (address, ..) = start(echo).await;
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream
                .write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                .await
                .unwrap();
            stream.read_exact(&mut [0; 12]).await.unwrap();
            idle.push(stream);
        }
        let waiting = tokio::spawn(async move { ask(address, "GET /health").await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());

        idle.pop();

        assert!(waiting.await.unwrap().starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn the_shutdown_lets_a_request_in_progress_finish() {
        let (entered, leave) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (address, shutdown, served) = start({
            let (entered, leave) = (entered.clone(), leave.clone());
            move |_| {
                let (entered, leave) = (entered.clone(), leave.clone());
                async move {
                    entered.notify_one();
                    leave.notified().await;
                    Response::text("late")
                }
            }
        })
        .await;
        let asked = tokio::spawn(async move { ask(address, "GET /").await });
        entered.notified().await;

        shutdown.trigger(Reason::Terminate);
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        leave.notify_one();

        assert!(asked.await.unwrap().ends_with("late"));
        served.await.unwrap();
    }

    #[tokio::test]
    async fn a_taken_port_names_the_flag() {
        let first = listen(LOOPBACK, 0, "--port").await.unwrap();
        let port = first.local_addr().unwrap().port();

        let error = listen(LOOPBACK, port, "--port (BRIDGE_PORT)")
            .await
            .unwrap_err();

        let expected = format!(
            "port {port} on 127.0.0.1 is taken by another process; choose another with --port (BRIDGE_PORT)"
        );
        assert_eq!(error.to_string(), expected);
    }
}
