//! Deleting what is in a namespace, and then taking off the finalizer that stands for it.

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams, Preconditions};
use kube::core::{ApiResource, Status, discovery::verbs};
use kube::discovery::{Discovery, Scope};
use kube::{Api, ResourceExt};

use super::{FINALIZER, Plan};

/// Objects listed at once.
const PAGE: u32 = 500;

pub(super) async fn apply(client: kube::Client, plan: &Plan) -> Result<(), kube::Error> {
    let mut left = 0;
    for kind in deletable(&client).await? {
        left += empty(client.clone(), &plan.namespace, &kind).await?;
    }
    if left > 0 {
        // Held by finalizers; seen again when they are off.
        return Err(retry_later(&plan.namespace, left));
    }
    finalize(client, plan).await?;
    tracing::info!(
        object.kind = "Namespace",
        object.name = plan.namespace,
        "namespace is empty and gone"
    );
    Ok(())
}

async fn deletable(client: &kube::Client) -> Result<Vec<ApiResource>, kube::Error> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let mut kinds = Vec::new();
    for group in discovery.groups() {
        // Each kind once, in the version that the server prefers.
        for (resource, capabilities) in group.recommended_resources() {
            let namespaced = capabilities.scope == Scope::Namespaced;
            if namespaced
                && capabilities.supports_operation(verbs::LIST)
                && capabilities.supports_operation(verbs::DELETE)
            {
                kinds.push(resource);
            }
        }
    }
    // Events last, so that what the others have to say about it is not left behind.
    kinds.sort_by_key(|kind| kind.kind == "Event");
    Ok(kinds)
}

/// Deletes all objects of a kind. How many are still there, on their way out.
async fn empty(client: kube::Client, namespace: &str, kind: &ApiResource) -> Result<usize, kube::Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, kind);
    let mut left = 0;
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = api.list(&page).await?;
        for object in list.items {
            let uid = object.uid();
            let params = DeleteParams::default().preconditions(Preconditions {
                uid,
                resource_version: None,
            });
            match api.delete(&object.name_any(), &params).await {
                Ok(answer) => left += usize::from(answer.left().is_some_and(|there| is_held(&there))),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(left),
        }
    }
}

fn is_held(object: &DynamicObject) -> bool {
    object.metadata.deletion_timestamp.is_some()
        && object
            .metadata
            .finalizers
            .as_ref()
            .is_some_and(|finalizers| !finalizers.is_empty())
}

async fn finalize(client: kube::Client, plan: &Plan) -> Result<(), kube::Error> {
    let namespaces: Api<Namespace> = Api::all(client);
    let Some(mut namespace) = namespaces.get_opt(&plan.namespace).await? else {
        return Ok(());
    };
    if namespace.metadata.uid.as_deref() != Some(plan.version.uid.as_str()) {
        return Ok(());
    }
    if let Some(finalizers) = namespace.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    let params = PostParams::default();
    match namespaces
        .replace_subresource("finalize", &plan.namespace, &params, &namespace)
        .await
    {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        answer => answer.map(|_| ()),
    }
}

fn retry_later(namespace: &str, left: usize) -> kube::Error {
    let message = format!("{left} objects in namespace {namespace} are held by finalizers");
    kube::Error::Api(Status::failure(&message, "Conflict").with_code(409).boxed())
}
