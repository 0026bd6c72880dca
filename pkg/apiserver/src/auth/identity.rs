//! Who calls.

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;

use crate::pki;

/// Group of administrators.
pub(crate) const GROUP_ADMINS: &str = "system:masters";
/// Group of the controllers.
pub(crate) const GROUP_CONTROLLERS: &str = "system:controller";
/// Group of the nodes.
pub(crate) const GROUP_NODES: &str = "system:nodes";
/// Group of those who only look.
pub(crate) const GROUP_VIEWERS: &str = "svcnet:viewers";
/// Group of those who hold a join token.
pub(crate) const GROUP_BOOTSTRAPPERS: &str = "system:bootstrappers";
/// Group of everybody who has said who they are, and of everybody else.
pub(crate) const GROUP_AUTHENTICATED: &str = "system:authenticated";
const GROUP_UNAUTHENTICATED: &str = "system:unauthenticated";
/// What a caller is named who has not said who they are.
pub(crate) const ANONYMOUS: &str = "system:anonymous";
/// What the names of nodes' users begin with.
pub(crate) const NODE_PREFIX: &str = "system:node:";

/// A caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) groups: Vec<String>,
    pub(crate) role: Role,
    /// What the caller has shown, if it was a token.
    pub(crate) token: Option<TokenHeld>,
    /// When the certificate was made that the caller has shown, if it was one, in seconds since 1970.
    pub(crate) certified: Option<i64>,
}

/// The token that a caller holds: what it allows ends with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenHeld {
    pub(crate) id: String,
    pub(crate) expires: Option<Timestamp>,
}

/// What a caller is, by the groups that they are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// May do everything.
    Admin,
    /// May do everything with objects.
    Controller,
    /// The node of that name.
    Node(String),
    /// Sees everything but Secrets.
    Viewer,
    /// May ask to become a node: the one of that name, or any.
    Bootstrapper(Option<String>),
    /// Known by name, with no rights.
    Nobody,
    /// Not known.
    Anonymous,
}

impl User {
    pub(crate) fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_string(),
            groups: vec![GROUP_UNAUTHENTICATED.to_string()],
            role: Role::Anonymous,
            token: None,
            certified: None,
        }
    }

    /// The server itself.
    pub(crate) fn apiserver() -> Self {
        Self::new("system:apiserver", [GROUP_ADMINS.to_string()])
    }

    /// Whoever holds a join token, and the node's name that it is good for, if it is for one alone.
    pub(crate) fn bootstrapper(id: &str, node: Option<String>) -> Self {
        Self {
            role: Role::Bootstrapper(node),
            ..Self::new(
                &format!("system:bootstrap:{id}"),
                [GROUP_BOOTSTRAPPERS.to_string()],
            )
        }
    }

    /// A caller by name and groups, which make the role. Everybody is authenticated but one.
    pub(crate) fn new(name: &str, groups: impl IntoIterator<Item = String>) -> Self {
        if name == ANONYMOUS {
            return Self::anonymous();
        }
        let mut groups: Vec<String> = groups.into_iter().collect();
        let is = |group: &str| groups.iter().any(|g| g == group);
        let node = name.strip_prefix(NODE_PREFIX).filter(|n| !n.is_empty());
        let role = match node {
            _ if is(GROUP_ADMINS) => Role::Admin,
            _ if is(GROUP_CONTROLLERS) => Role::Controller,
            Some(node) if is(GROUP_NODES) => Role::Node(node.to_string()),
            _ if is(GROUP_VIEWERS) => Role::Viewer,
            _ if is(GROUP_BOOTSTRAPPERS) => Role::Bootstrapper(None),
            _ => Role::Nobody,
        };
        if !is(GROUP_AUTHENTICATED) {
            groups.push(GROUP_AUTHENTICATED.to_string());
        }
        Self {
            name: name.to_string(),
            groups,
            role,
            token: None,
            certified: None,
        }
    }

    pub(crate) fn is_anonymous(&self) -> bool {
        self.role == Role::Anonymous
    }
}

/// The caller that a client certificate names: CN is the user, each O a group; and the second at which it ends. rustls
/// has verified it already, but for the time where a session goes on.
pub(crate) fn from_certificate(der: &CertificateDer<'_>) -> Option<(User, i64)> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    let groups = certificate
        .subject()
        .iter_organization()
        .filter_map(|o| o.as_str().ok().map(str::to_string));
    let validity = certificate.validity();
    let end = validity.not_after.timestamp();
    let user = User {
        certified: Some(pki::made(validity)),
        ..User::new(name, groups)
    };
    (end > Timestamp::now().as_second()).then_some((user, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_make_the_role() {
        for (name, groups, role) in [
            ("svcnet-admin", &["system:masters"][..], Role::Admin),
            ("system:node:n1", &["system:nodes"], Role::Node("n1".to_string())),
            ("system:node:n1", &[], Role::Nobody),
            ("system:node:", &["system:nodes"], Role::Nobody),
            ("n1", &["system:nodes"], Role::Nobody),
            ("alice", &["svcnet:viewers"], Role::Viewer),
            ("system:anonymous", &["system:masters"], Role::Anonymous),
        ] {
            let user = User::new(name, groups.iter().map(|g| (*g).to_string()));
            assert_eq!(user.role, role, "{name} {groups:?}");
            let authenticated = user.groups.iter().any(|g| g == GROUP_AUTHENTICATED);
            assert_eq!(authenticated, role != Role::Anonymous, "{name}");
        }
    }
}
