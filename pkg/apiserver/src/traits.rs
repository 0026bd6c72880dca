//! What a few kinds need beyond the table of kinds: subresources and rules that the real server has for them alone.
//! Verbs ask here, by kind, and know none themselves.

use std::time::Duration;

use svcnet_api::Kind;

/// The exceptions of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traits {
    /// `spec.finalizers` keep an object alive, are changed through the subresource `finalize` alone, and show in
    /// `status.phase`.
    pub(crate) finalize: bool,
    /// A new object keeps the status that it came with: the kubelet, and our agent, register their Node whole.
    pub(crate) status_on_create: bool,
    /// An update of what is not there creates it.
    pub(crate) create_on_update: bool,
    /// Objects go by themselves, so long after their last change.
    pub(crate) lifetime: Option<Duration>,
    /// Objects are encrypted on the disk.
    pub(crate) encrypted: bool,
    /// Names that cannot be deleted.
    pub(crate) immortal: &'static [&'static str],
}

const NONE: Traits = Traits {
    finalize: false,
    status_on_create: false,
    create_on_update: false,
    lifetime: None,
    encrypted: false,
    immortal: &[],
};

static TABLE: [(&str, &str, Traits); 6] = [
    (
        "",
        "namespaces",
        Traits {
            finalize: true,
            immortal: &["default", "kube-system", "kube-public"],
            ..NONE
        },
    ),
    (
        "",
        "nodes",
        Traits {
            status_on_create: true,
            ..NONE
        },
    ),
    (
        "",
        "events",
        Traits {
            create_on_update: true,
            // The real server's --event-ttl.
            lifetime: Some(Duration::from_secs(60 * 60)),
            ..NONE
        },
    ),
    (
        "",
        "secrets",
        Traits {
            encrypted: true,
            ..NONE
        },
    ),
    (
        "",
        "endpoints",
        Traits {
            create_on_update: true,
            ..NONE
        },
    ),
    (
        "coordination.k8s.io",
        "leases",
        Traits {
            create_on_update: true,
            ..NONE
        },
    ),
];

/// The exceptions of a kind.
pub(crate) fn of(kind: &Kind) -> &'static Traits {
    let found = TABLE
        .iter()
        .find(|(group, plural, _)| (*group, *plural) == (kind.group, kind.plural));
    found.map_or(&NONE, |(_, _, traits)| traits)
}

/// Whether the kind is a custom resource for the real server, not one of its own.
pub(crate) fn is_custom(kind: &Kind) -> bool {
    !kind.group.is_empty() && !kind.group.ends_with(".k8s.io")
}

/// Whether `metadata.generation` counts the changes of a kind's objects. The real server's older kinds have none,
/// nor have those that its allocators keep.
pub(crate) fn has_generation(kind: &Kind) -> bool {
    let counted = matches!(kind.group, "discovery.k8s.io" | "networking.k8s.io");
    is_custom(kind) || counted && !matches!(kind.kind, "ServiceCIDR" | "IPAddress")
}

/// Whether a kind has a subresource.
pub(crate) fn has_subresource(kind: &Kind, subresource: &str) -> bool {
    match subresource {
        "" => true,
        "status" => kind.status,
        "finalize" => of(kind).finalize,
        _ => false,
    }
}
