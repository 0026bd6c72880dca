//! Errors as Kubernetes clients read them: a `Status` object with a code, a reason and causes
//! (k8s.io/apimachinery, pkg/api/errors).

use serde_json::{Value, json};

use crate::field::FieldError;
use crate::kind::Kind;

/// `Status.reason`, the machine-readable half of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of metav1.StatusReason")]
pub enum Reason {
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Expired,
    Invalid,
    Timeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    ServiceUnavailable,
    /// None is told; code 500 (the real server's answer to errors that it has no reason for).
    Unknown,
}

impl Reason {
    /// The HTTP status code that goes with the reason.
    pub fn code(self) -> u16 {
        match self {
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Gone | Self::Expired => 410,
            Self::Invalid => 422,
            Self::Timeout => 504,
            Self::TooManyRequests => 429,
            Self::BadRequest => 400,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::InternalError | Self::Unknown => 500,
            Self::ServiceUnavailable => 503,
        }
    }
}

/// A refused or failed request, ready to be written as a `Status`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Why, for machines; fixes the HTTP code.
    pub reason: Reason,
    /// Why, for people; the real apiserver's words wherever it has some.
    pub message: String,
    /// `Status.details`: which object, and the causes by field.
    pub details: Option<Value>,
    /// `Status.metadata.continue`: where a list whose revision is forgotten may go on nevertheless.
    pub continue_at: Option<String>,
}

impl ApiError {
    /// An error with no details.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            details: None,
            continue_at: None,
        }
    }

    /// `services "nginx" not found`
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        Self::about(
            Reason::NotFound,
            kind,
            name,
            format!("{} \"{name}\" not found", kind.resource()),
        )
    }

    /// `services "nginx" already exists`
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", kind.resource());
        Self::about(Reason::AlreadyExists, kind, name, message)
    }

    /// `Operation cannot be fulfilled on services "nginx": …`
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            kind.resource()
        );
        Self::about(Reason::Conflict, kind, name, message)
    }

    /// `services "nginx" is forbidden: …`
    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let object = if name.is_empty() {
            String::new()
        } else {
            format!(" \"{name}\"")
        };
        let message = format!("{}{object} is forbidden: {why}", kind.resource());
        Self::about(Reason::Forbidden, kind, name, message)
    }

    /// `Service "nginx" is invalid: spec.ports: Required value`, or the list in brackets where there are several.
    pub fn invalid(kind: &Kind, name: &str, errors: &[FieldError]) -> Self {
        let text = FieldError::list(errors);
        let head = if kind.group.is_empty() {
            kind.kind.to_string()
        } else {
            format!("{}.{}", kind.kind, kind.group)
        };
        let causes: Vec<Value> = errors.iter().map(FieldError::to_cause).collect();
        let mut details = json!({"name": name, "kind": kind.kind, "causes": causes});
        if !kind.group.is_empty() {
            details["group"] = json!(kind.group);
        }
        Self {
            reason: Reason::Invalid,
            message: format!("{head} \"{name}\" is invalid: {text}"),
            details: Some(details),
            continue_at: None,
        }
    }

    /// 400 with the given message.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    /// `Internal error occurred: …`
    pub fn internal(why: impl std::fmt::Display) -> Self {
        Self::new(Reason::InternalError, format!("Internal error occurred: {why}"))
    }

    /// The `Status` object.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": format!("{:?}", self.reason), "code": self.reason.code(),
        });
        if let Some(token) = &self.continue_at {
            status["metadata"]["continue"] = token.as_str().into();
        }
        if self.reason == Reason::Unknown
            && let Some(fields) = status.as_object_mut()
        {
            fields.remove("reason");
        }
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }

    fn about(reason: Reason, kind: &Kind, name: &str, message: String) -> Self {
        let mut details = json!({"name": name, "kind": kind.plural});
        if !kind.group.is_empty() {
            details["group"] = json!(kind.group);
        }
        Self {
            reason,
            message,
            details: Some(details),
            continue_at: None,
        }
    }
}
