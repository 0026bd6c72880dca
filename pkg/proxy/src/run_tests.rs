use std::time::Instant;

use svcnet_runtime::Health;

use super::*;
use crate::Settings;
use crate::fake::{Fake, service};

const PATIENCE: Duration = Duration::from_secs(30);

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn worker() -> (Fake, Health, mpsc::Sender<Work>, std::thread::JoinHandle<()>) {
    let (fake, health) = (Fake::default(), Health::default());
    let engine = Engine::new("n1", Settings::default(), Box::new(fake.clone()));
    let (notices, _) = mpsc::channel(1);
    let out = Out {
        health: health.component("proxy"),
        board: Board::default(),
        checks: watch::Sender::default(),
        choice: watch::Sender::default(),
        notices,
    };
    let worker = Worker::new(engine, out, Duration::from_millis(1)).unwrap();
    let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
    let thread = std::thread::spawn(move || worker.work(receiver));
    (fake, health, sender, thread)
}

fn tell(sender: &mpsc::Sender<Work>, update: Update) {
    sender.blocking_send(Work::Update(update)).ok().unwrap();
}

#[test]
fn it_is_ready_when_the_kernel_has_taken_it_and_ends_with_its_sender() {
    let (fake, health, sender, thread) = worker();
    assert!(!health.report().0);
    fake.fail(3);
    tell(
        &sender,
        Update::Services(Change::Reset(vec![service("a", "10.96.0.1", None)])),
    );
    tell(&sender, Update::Slices(Change::Reset(Vec::new())));
    until("it tries again until it is taken", || {
        fake.names() == ["default/a"]
    });
    until("it is ready", || health.report().0);
    for number in 0..100 {
        tell(
            &sender,
            Update::Services(Change::Apply(service(
                &format!("s{number}"),
                &format!("10.96.1.{number}"),
                None,
            ))),
        );
    }
    until("all are there", || fake.names().len() == 101);
    drop(sender);
    thread.join().unwrap();
}

#[test]
fn a_foreign_hand_is_looked_after() {
    let (fake, _, sender, thread) = worker();
    tell(&sender, Update::Services(Change::Reset(Vec::new())));
    tell(&sender, Update::Slices(Change::Reset(Vec::new())));
    until("the first sync", || fake.calls().contains(&"converge"));
    sender.blocking_send(Work::Touched).ok().unwrap();
    fake.0.lock().unwrap().touched = true;
    sender.blocking_send(Work::Touched).ok().unwrap();
    until("it looks", || fake.calls().contains(&"converge"));
    drop(sender);
    thread.join().unwrap();
}
