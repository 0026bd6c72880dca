//! Answers on their way out.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, VARY, WARNING};
use http::{Response, StatusCode};
use serde_json::Value;
use serde_saphyr::SerializerOptions;
use svcnet_api::{ApiError, Reason};

use crate::body::Body;

/// Bodies below this are not worth compressing (the real server's limit).
const GZIP_MIN: u64 = 128 << 10;

/// An answer, not yet bound to a connection.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) code: u16,
    pub(crate) content_type: &'static str,
    pub(crate) body: Body,
    /// What `Warning` headers say.
    pub(crate) warnings: Vec<String>,
    pub(crate) headers: Vec<(HeaderName, String)>,
    /// The refusal that it is, if it is one.
    pub(crate) refusal: Option<ApiError>,
}

impl Reply {
    pub(crate) fn new(code: u16, content_type: &'static str, body: impl Into<Body>) -> Self {
        Self {
            code,
            content_type,
            body: body.into(),
            warnings: Vec::new(),
            headers: Vec::new(),
            refusal: None,
        }
    }

    pub(crate) fn json(code: u16, value: &Value) -> Self {
        Self::new(code, "application/json", value.to_string())
    }

    /// Bytes that are JSON already.
    pub(crate) fn raw_json(code: u16, bytes: Bytes) -> Self {
        Self::new(code, "application/json", bytes)
    }

    pub(crate) fn text(code: u16, text: impl Into<String>) -> Self {
        Self::new(code, "text/plain; charset=utf-8", text.into())
    }

    /// The same in YAML, if it is JSON and no stream. What YAML 1.1 takes for something else, as `on` and dates, is quoted.
    #[must_use]
    pub(crate) fn into_yaml(mut self) -> Self {
        let encoded = self.headers.iter().any(|(name, _)| name == CONTENT_ENCODING);
        let json = self.content_type == "application/json" && !encoded;
        let whole = json.then(|| self.body.whole()).flatten();
        let value = whole.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let mut options = SerializerOptions::default();
        // Go's reader takes no block that begins with a tab.
        options.prefer_block_scalars = false;
        let text = value.and_then(|value| serde_saphyr::to_string_with_options(&value, options).ok());
        if let Some(text) = text {
            self.content_type = "application/yaml";
            self.body = text.into();
        }
        self
    }

    pub(crate) fn into_response(self, gzip: bool) -> Response<Body> {
        let compress = gzip && self.body.len().is_some_and(|l| l >= GZIP_MIN);
        let body = if compress {
            self.body.compressed()
        } else {
            self.body
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert("cache-control", HeaderValue::from_static("no-cache, private"));
        headers.insert(VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
        if compress {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        for warning in &self.warnings {
            let escaped = warning.replace('\\', "\\\\").replace('"', "\\\"");
            // No header holds several lines.
            let escaped = escaped.replace(char::is_control, " ");
            if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{escaped}\"")) {
                headers.append(WARNING, value);
            }
        }
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
        response
    }
}

impl From<ApiError> for Reply {
    fn from(error: ApiError) -> Self {
        let mut reply = Self::json(error.reason.code(), &error.to_status());
        match error.reason {
            Reason::Unauthorized => {
                let challenge = "Bearer realm=\"svcnet\"".to_string();
                reply.headers.push((http::header::WWW_AUTHENTICATE, challenge));
            }
            Reason::TooManyRequests | Reason::ServiceUnavailable | Reason::Timeout => {
                reply.headers.push((http::header::RETRY_AFTER, "1".to_string()));
            }
            _ => {}
        }
        reply.refusal = Some(error);
        reply
    }
}
