//! The browser page, out of the binary.

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use crate::gateway::Shared;
use crate::policy::{Exchange, LocalResponse};

macro_rules! files {
    ($($path:literal $file:literal $kind:literal;)*) => {
        /// Paths, types and contents.
        static FILES: &[(&str, &str, &[u8])] = &[$(($path, $kind, include_bytes!(concat!("../../web/", $file))),)*];
    };
}

files! {
    "/" "index.html" "text/html; charset=utf-8";
    "/page.css" "page.css" "text/css; charset=utf-8";
    "/page.js" "page.js" "text/javascript; charset=utf-8";
    "/streamgate-client.js" "streamgate-client.js" "text/javascript; charset=utf-8";
    "/icon.svg" "icon.svg" "image/svg+xml";
}

/// The page's own scripts and styles, its own origin for everything else, and no frame around it.
const POLICY: &str = "default-src 'self'; img-src 'self' data:; media-src 'self' blob:; connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// The file that a request asks for, when the page is served here.
pub(crate) fn find(shared: &Shared, exchange: &Exchange) -> Option<LocalResponse> {
    if !shared.config.listen.page || !matches!(exchange.method, Method::GET | Method::HEAD) {
        return None;
    }
    let (_, kind, content) = FILES.iter().find(|(path, _, _)| *path == exchange.path)?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Some(LocalResponse { status: StatusCode::OK, headers, body: Bytes::from_static(content) })
}
