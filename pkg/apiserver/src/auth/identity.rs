//! Who calls.

use rustls_pki_types::CertificateDer;

/// Group of administrators.
pub(crate) const GROUP_ADMINS: &str = "system:masters";
/// Group of the controllers.
pub(crate) const GROUP_CONTROLLERS: &str = "system:controller";
/// Group of the nodes.
pub(crate) const GROUP_NODES: &str = "system:nodes";
/// Group of those who hold the join token.
pub(crate) const GROUP_BOOTSTRAPPERS: &str = "system:bootstrappers";

/// A caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) role: Role,
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
    /// May ask to become a node.
    Bootstrapper,
    /// Known by name, with no rights.
    Nobody,
    /// Not known.
    Anonymous,
}

impl User {
    pub(crate) fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_string(),
            role: Role::Anonymous,
        }
    }

    /// The server itself.
    pub(crate) fn apiserver() -> Self {
        Self {
            name: "system:apiserver".to_string(),
            role: Role::Admin,
        }
    }

    pub(crate) fn bootstrapper() -> Self {
        Self {
            name: "system:bootstrap:svcnet".to_string(),
            role: Role::Bootstrapper,
        }
    }

    fn new(name: &str, groups: &[&str]) -> Self {
        let is = |group| groups.contains(&group);
        let node = name.strip_prefix("system:node:").filter(|n| !n.is_empty());
        let role = match node {
            _ if is(GROUP_ADMINS) => Role::Admin,
            _ if is(GROUP_CONTROLLERS) => Role::Controller,
            Some(node) if is(GROUP_NODES) => Role::Node(node.to_string()),
            _ if is(GROUP_BOOTSTRAPPERS) => Role::Bootstrapper,
            _ => Role::Nobody,
        };
        Self {
            name: name.to_string(),
            role,
        }
    }
}

/// The caller that a client certificate names: CN is the user, each O a group. rustls has verified it already.
pub(crate) fn from_certificate(der: &CertificateDer<'_>) -> Option<User> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    let groups: Vec<&str> = certificate
        .subject()
        .iter_organization()
        .filter_map(|o| o.as_str().ok())
        .collect();
    Some(User::new(name, &groups))
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
        ] {
            assert_eq!(User::new(name, groups).role, role, "{name} {groups:?}");
        }
    }
}
