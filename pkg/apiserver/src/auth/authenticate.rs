//! From a connection and the head of a request to a caller.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use svcnet_api::{ApiError, Reason};

use super::identity::{GROUP_AUTHENTICATED, Role, User};
use super::tokens::{Shown, Tokens};

/// Who calls: as whom, and who it really is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Whose rights count.
    pub(crate) user: User,
    /// Who acts as that user, when it is another (`kubectl --as`).
    pub(crate) by: Option<User>,
}

/// Nobody gets in: what they are told, and what the audit log says.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) error: ApiError,
    pub(crate) user: User,
    pub(crate) why: String,
}

/// What the connection says, or else the bearer token. A wrong token is refused even where none is needed.
pub(crate) fn authenticate(tokens: &Tokens, peer: User, headers: &HeaderMap) -> Result<Caller, Box<Refused>> {
    let given = headers.get(AUTHORIZATION).and_then(|a| a.to_str().ok());
    let token = given.and_then(bearer);
    let user = match token {
        Some(token) if peer.is_anonymous() => match tokens.holder(token) {
            Shown::Good(user) => user,
            Shown::Expired(id, end) => {
                return Err(unauthorized(format!("the token {id} has expired at {end}")));
            }
            Shown::Unknown => return Err(unauthorized("the token is not known, or revoked".to_string())),
        },
        _ if tokens.is_revoked(&peer) => {
            let why = format!("certificates of {} that are as old are revoked", peer.name);
            return Err(unauthorized(why));
        }
        // As the real server has it: a certificate goes before a token.
        _ => peer,
    };
    impersonate(user, headers)
}

/// The scheme is written in any case (RFC 9110, section 11.1).
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn unauthorized(why: String) -> Box<Refused> {
    Box::new(Refused {
        error: ApiError::new(Reason::Unauthorized, "Unauthorized"),
        user: User::anonymous(),
        why,
    })
}

/// Acting as another user: `Impersonate-User`, and `Impersonate-Group` any number of times. Administrators may.
fn impersonate(user: User, headers: &HeaderMap) -> Result<Caller, Box<Refused>> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .filter(|v| !v.is_empty())
    };
    let groups: Vec<String> = headers
        .get_all("impersonate-group")
        .iter()
        .filter_map(|v| v.to_str().ok().map(str::to_string))
        .collect();
    let Some(name) = text("impersonate-user") else {
        if groups.is_empty() && text("impersonate-uid").is_none() {
            return Ok(Caller { user, by: None });
        }
        // The real server's words, and its code.
        let why = "requested [] without impersonating a user".to_string();
        let error = ApiError::internal(&why);
        return Err(Box::new(Refused { error, user, why }));
    };
    if user.is_anonymous() {
        return Err(unauthorized(
            "nobody acts as another user without saying who they are".to_string(),
        ));
    }
    if user.role != Role::Admin {
        let why = format!(
            "users \"{name}\" is forbidden: User \"{}\" cannot impersonate resource \"users\" in API group \"\" at the \
             cluster scope",
            user.name
        );
        let mut error = ApiError::new(Reason::Forbidden, why.as_str());
        error.details = Some(serde_json::json!({"name": name, "kind": "users"}));
        return Err(Box::new(Refused { error, user, why }));
    }
    let mut acted = User::new(name, groups);
    // Its end is that of the token behind it.
    acted.token.clone_from(&user.token);
    debug_assert!(acted.is_anonymous() || acted.groups.iter().any(|g| g == GROUP_AUTHENTICATED));
    Ok(Caller {
        user: acted,
        by: Some(user),
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn as_user(user: User, headers: &[(&'static str, &str)]) -> Result<Caller, Box<Refused>> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        impersonate(user, &map)
    }

    #[test]
    fn administrators_act_as_others_with_their_rights_alone() {
        let headers = [
            ("impersonate-user", "system:node:n1"),
            ("impersonate-group", "system:nodes"),
        ];
        let caller = as_user(User::apiserver(), &headers).unwrap();
        assert_eq!(caller.user.role, Role::Node("n1".to_string()));
        assert_eq!(caller.by.unwrap().name, "system:apiserver");
        let nobody = as_user(User::apiserver(), &headers[..1]).unwrap();
        assert_eq!(nobody.user.role, Role::Nobody, "groups do not come by themselves");
        let viewer = User::new("alice", ["svcnet:viewers".to_string()]);
        let refused = as_user(viewer, &[("impersonate-user", "bob")]).unwrap_err();
        assert_eq!(
            refused.error.message,
            "users \"bob\" is forbidden: User \"alice\" cannot impersonate resource \"users\" in API group \"\" at the \
             cluster scope"
        );
        let refused = as_user(User::anonymous(), &headers).unwrap_err();
        assert_eq!(refused.error.reason, Reason::Unauthorized);
        assert!(as_user(User::apiserver(), &[("impersonate-group", "system:masters")]).is_err());
    }

    #[test]
    fn the_scheme_is_written_in_any_case() {
        assert_eq!(bearer("Bearer a.b"), Some("a.b"));
        assert_eq!(bearer("bearer  a.b "), Some("a.b"));
        assert_eq!(bearer("Basic a.b"), None);
        assert_eq!(bearer("Bearer"), None);
    }
}
