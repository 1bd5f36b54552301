//! Requests and replies over the peer's one topic, which carries both.

use std::time::Duration;

use bytes::Bytes;
use postrider::{Client, Json, Message, REPLY_TO, Raw, Record, RequestError, RespondError, Start};

use crate::tcp::{Host, within};

/// Answers requests whose value is a number: as many times as it says.
async fn answer(client: Client) {
    let mut requests = client.reader::<Raw>("t").from(Start::Earliest).open().await.unwrap();
    let responder = client.responder::<Raw>();
    while let Some(Ok(request)) = requests.next_message().await {
        if request.headers.get(REPLY_TO).is_none() {
            let refused = responder.respond(&request.headers, Record::new("?")).await;
            assert!(matches!(refused, Err(RespondError::NoReplyTopic)));
            continue;
        }
        let times: u32 = std::str::from_utf8(&request.value).unwrap().parse().unwrap();
        for n in 0..times {
            responder.respond(&request.headers, Record::new(format!("{n}"))).await.unwrap();
        }
    }
}

fn values(replies: Vec<Message<u32>>) -> Vec<u32> {
    replies.into_iter().map(|reply| reply.value).collect()
}

#[tokio::test]
async fn requests_get_their_own_replies_in_time_or_learn_that_there_are_none() {
    let host = Host::start(1).await;
    let client = host.client().await;
    let answering = tokio::spawn(answer(client.clone()));
    let requester = client.requester::<Raw, Json<u32>>("t", "t").await.unwrap();
    let long = Duration::from_secs(20);
    let (one, two) = within(futures_util::future::join(
        requester.request(Record::new("1"), long),
        requester.gather(Record::new("2"), 2, long),
    ))
    .await;
    assert_eq!(one.unwrap().value, 0);
    assert_eq!(values(two.unwrap()), [0, 1]);
    let short = Duration::from_millis(50);
    let none = within(requester.request(Record::new("0"), short)).await.unwrap_err();
    assert!(matches!(none, RequestError::TimedOut), "{none}");
    let few = within(requester.gather(Record::new("3"), 2, long)).await.unwrap();
    assert_eq!(values(few), [0, 1], "no more than were asked for");
    answering.abort();
}

#[tokio::test]
async fn a_requester_whose_client_is_closed_says_so() {
    let host = Host::start(1).await;
    let client = host.client().await;
    let requester = client.requester::<Raw, Raw>("t", "t").await.unwrap();
    client.close(Duration::from_secs(5)).await;
    let asked: Result<Message<Bytes>, _> =
        within(requester.request(Record::new("1"), Duration::from_secs(20))).await;
    let error = asked.unwrap_err();
    assert!(matches!(error, RequestError::Ended | RequestError::Send(_)), "{error}");
}
