//! Carrying out the writes for one Service.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Endpoints;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};

use super::model::ANNOTATION_TRIGGER_TIME;
use super::plan::{Op, Plan};
use crate::engine::Applied;
use crate::view::{ObjectKey, Version};

/// What the server has acknowledged.
pub(crate) enum Written {
    Slice(Box<EndpointSlice>),
    SliceGone(String, Version),
    Endpoints(Box<Endpoints>),
    EndpointsGone(Version),
}

pub(super) async fn apply(client: kube::Client, plan: Plan) -> Applied<Vec<Written>> {
    let mut written = Vec::new();
    for op in plan.ops {
        match write(&client, &plan.service, plan.trigger, op).await {
            Ok(done) => written.push(done),
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

async fn write(
    client: &kube::Client,
    service: &ObjectKey,
    trigger: Option<Timestamp>,
    op: Op,
) -> Result<Written, kube::Error> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), &service.namespace);
    let endpoints: Api<Endpoints> = Api::namespaced(client.clone(), &service.namespace);
    let post = PostParams::default();
    Ok(match op {
        Op::WriteSlice { name, slice, over } => {
            let object = slice.to_object(metadata(&service.namespace, &name, trigger, over.as_ref()));
            let stored = match over {
                None => slices.create(&post, &object).await?,
                Some(_) => slices.replace(&name, &post, &object).await?,
            };
            Written::Slice(Box::new(stored))
        }
        Op::DeleteSlice { name, version } => {
            gone(slices.delete(&name, &exactly(&version)).await)?;
            Written::SliceGone(name, version)
        }
        Op::WriteEndpoints {
            endpoints: content,
            over,
        } => {
            let object = content.to_object(metadata(
                &service.namespace,
                &service.name,
                trigger,
                over.as_ref(),
            ));
            let stored = match over {
                None => endpoints.create(&post, &object).await?,
                Some(_) => endpoints.replace(&service.name, &post, &object).await?,
            };
            Written::Endpoints(Box::new(stored))
        }
        Op::DeleteEndpoints { version } => {
            gone(endpoints.delete(&service.name, &exactly(&version)).await)?;
            Written::EndpointsGone(version)
        }
    })
}

fn metadata(namespace: &str, name: &str, trigger: Option<Timestamp>, over: Option<&Version>) -> ObjectMeta {
    let trigger = trigger.map(|time| [(ANNOTATION_TRIGGER_TIME.to_string(), time.to_string())].into());
    ObjectMeta {
        name: Some(name.to_string()),
        namespace: Some(namespace.to_string()),
        annotations: Some(trigger.unwrap_or_default()),
        resource_version: over.map(|version| version.revision.clone()),
        uid: over.map(|version| version.uid.clone()),
        ..ObjectMeta::default()
    }
}

/// Deletes this object only, not another one of its name.
fn exactly(version: &Version) -> DeleteParams {
    let uid = Some(version.uid.clone());
    DeleteParams::default().preconditions(Preconditions {
        resource_version: None,
        uid,
    })
}

/// Somebody else may have deleted it first.
fn gone<T>(answer: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}
