//! Hooks on writes: a counter of things that objects take, which must be right whatever happens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use svcnet_api::{Admission, ApiError, Kind, Operation, Request, Reservation};

use crate::harness::Running;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Gives each ConfigMap the number in `data.want`, or the lowest free one. A number belongs to one object.
#[derive(Default)]
struct Numbers {
    taken: Arc<Mutex<BTreeMap<u64, String>>>,
}

struct Taken {
    taken: Arc<Mutex<BTreeMap<u64, String>>>,
    new: Option<u64>,
    old: Option<u64>,
    committed: bool,
}

impl Reservation for Taken {
    fn commit(mut self: Box<Self>) {
        self.committed = true;
        if let Some(old) = self.old
            && self.new != Some(old)
        {
            self.taken.lock().unwrap().remove(&old);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.committed
            && let Some(new) = self.new
            && self.old != Some(new)
        {
            self.taken.lock().unwrap().remove(&new);
        }
    }
}

fn number(object: &Value) -> Option<u64> {
    object["data"]["number"].as_str()?.parse().ok()
}

impl Admission for Numbers {
    fn admit(
        &self,
        request: &Request<'_>,
        new: Option<&mut Value>,
    ) -> Result<Option<Box<dyn Reservation>>, ApiError> {
        if request.kind.kind != "ConfigMap" || request.namespace != "default" {
            return Ok(None);
        }
        let old = request.old.and_then(number);
        let mut taken = self.taken.lock().unwrap();
        let number = match new {
            None => None,
            Some(new) => {
                let free = (1..).find(|n| !taken.contains_key(n)).unwrap();
                let wanted = number(new).or(old).unwrap_or(free);
                if old != Some(wanted) {
                    if taken.contains_key(&wanted) {
                        return Err(ApiError::forbidden(
                            request.kind,
                            request.name,
                            "the number is taken",
                        ));
                    }
                    taken.insert(wanted, request.name.to_string());
                }
                new["data"]["number"] = wanted.to_string().into();
                Some(wanted)
            }
        };
        drop(taken);
        assert_eq!(request.operation == Operation::Delete, number.is_none());
        let taken = Taken {
            taken: self.taken.clone(),
            new: number,
            old,
            committed: false,
        };
        Ok(Some(Box::new(taken)))
    }

    fn restore(&self, kind: &'static Kind, object: &Value) {
        if let ("ConfigMap", Some(number)) = (kind.kind, number(object)) {
            let name = object["metadata"]["name"].as_str().unwrap().to_string();
            self.taken.lock().unwrap().insert(number, name);
        }
    }
}

fn map(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

async fn stored(server: &Running) -> BTreeMap<u64, String> {
    let (_, list) = server.get(MAPS).await;
    let items = list["items"].as_array().unwrap().iter();
    items
        .map(|i| {
            (
                number(i).unwrap(),
                i["metadata"]["name"].as_str().unwrap().to_string(),
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_know_what_is_stored_whatever_happens() {
    let numbers = Arc::new(Numbers::default());
    let server =
        Arc::new(Running::start_with(Arc::new(tempfile::tempdir().unwrap()), vec![numbers.clone()]).await);
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let server = server.clone();
            tokio::spawn(async move {
                for turn in 0..40_u64 {
                    // Few names, so that the writers meet.
                    let name = format!("m{}", (task * 7 + turn) % 5);
                    let one = format!("{MAPS}/{name}");
                    match (task + turn) % 7 {
                        0 => server.delete(&one).await.0,
                        1 => {
                            server
                                .put(&one, &map(&name, &json!({"number": (turn % 9 + 1).to_string()})))
                                .await
                                .0
                        }
                        2 => {
                            server
                                .post(&format!("{MAPS}?dryRun=All"), &map(&name, &json!({})))
                                .await
                                .0
                        }
                        // Refused after the hooks: a key that cannot be.
                        3 => {
                            server
                                .post(MAPS, &map(&format!("bad{task}"), &json!({"no/key": "x"})))
                                .await
                                .0
                        }
                        4 => {
                            server
                                .put(&one, &map(&name, &json!({"turn": turn.to_string()})))
                                .await
                                .0
                        }
                        _ => server.post(MAPS, &map(&name, &json!({}))).await.0,
                    };
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let there = stored(&server).await;
    assert_eq!(*numbers.taken.lock().unwrap(), there);
    let (code, refused) = server.post(MAPS, &map("x", &json!({"number": "1"}))).await;
    if code != 201 {
        assert_eq!(
            refused["message"],
            "configmaps \"x\" is forbidden: the number is taken"
        );
    }
    let before = stored(&server).await;
    let Ok(server) = Arc::try_unwrap(server) else {
        panic!("all tasks have ended")
    };
    let dir = server.stop().await;
    let numbers = Arc::new(Numbers::default());
    let server = Running::start_with(dir, vec![numbers.clone()]).await;
    assert_eq!(
        *numbers.taken.lock().unwrap(),
        before,
        "a restart tells the hooks what is stored"
    );
    server.stop().await;
}
