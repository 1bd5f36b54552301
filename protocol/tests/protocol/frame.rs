//! Frames: however the bytes arrive, the same frames come out; what is no frame is told at once.

use bytes::{Bytes, BytesMut};
use postrider_protocol::{
    api::Api,
    codec::DecodeError,
    frame::{self, FLAG_ERROR, FLAG_REPLY, Frame, FrameDecoder, FrameError, FrameHeader},
    message::{Credit, Hello, Message, Ping, PingReply, Publish},
    types::{Compression, CorrelationId, SubscriptionHandle},
};

use crate::samples;

fn decode_all(stream: &[u8], piece_len: usize) -> Vec<Frame> {
    let mut decoder = FrameDecoder::new(1 << 20);
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    for piece in stream.chunks(piece_len) {
        buffer.extend_from_slice(piece);
        while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
            frames.push(frame);
        }
    }
    assert!(buffer.is_empty());
    frames
}

#[test]
fn frames_come_out_the_same_however_the_bytes_arrive() {
    let samples = samples::all();
    let stream: Vec<u8> = samples.iter().flat_map(|sample| sample.frame.to_vec()).collect();
    for piece_len in [1, 2, 3, 7, 16, 17, 100, stream.len()] {
        let frames = decode_all(&stream, piece_len);
        let again: Vec<u8> = frames
            .iter()
            .flat_map(|frame| [frame.header.encode().as_slice(), &frame.body].concat())
            .collect();
        assert_eq!(frames.len(), samples.len());
        assert!(again == stream, "pieces of {piece_len}");
    }
}

#[test]
fn a_length_above_the_limit_is_refused_with_the_header_alone() {
    let header = FrameHeader {
        body_len: u32::MAX,
        api: 1,
        version: 1,
        flags: 0,
        correlation: CorrelationId(0),
    };
    let mut decoder = FrameDecoder::new(4096);
    let mut buffer = BytesMut::from(header.encode().as_slice());
    assert_eq!(decoder.missing(&buffer), 4096);
    assert_eq!(
        decoder.decode(&mut buffer),
        Err(FrameError::TooLarge { body_len: u32::MAX, max: 4096 })
    );
    decoder.set_max(u32::MAX);
    assert_eq!(decoder.decode(&mut buffer), Ok(None));
}

#[test]
fn only_defined_flags_are_taken() {
    for flags in 0..=u8::MAX {
        let header =
            FrameHeader { body_len: 0, api: 2, version: 1, flags, correlation: CorrelationId(1) };
        let mut buffer = BytesMut::from(header.encode().as_slice());
        let decoded = FrameDecoder::new(0).decode(&mut buffer);
        match flags {
            0 | FLAG_REPLY => assert!(!decoded.unwrap().unwrap().header.is_error()),
            3 => assert!(decoded.unwrap().unwrap().header.is_error()),
            _ => assert_eq!(decoded, Err(FrameError::Flags(flags))),
        }
    }
    assert_eq!(FLAG_REPLY | FLAG_ERROR, 3);
}

#[test]
fn missing_is_what_completes_the_frame_at_the_front() {
    let whole = &samples::all()[0].frame;
    let mut decoder = FrameDecoder::new(4096);
    for cut in 0..whole.len() {
        let mut buffer = BytesMut::from(&whole[..cut]);
        assert_eq!(decoder.decode(&mut buffer), Ok(None));
        let until = if cut < 16 { 16 } else { whole.len() };
        assert_eq!(decoder.missing(&buffer), until - cut);
    }
}

#[test]
fn a_body_shares_the_read_buffer() {
    let mut buffer = BytesMut::from(samples::all()[0].frame.as_ref());
    let memory = buffer.as_ptr() as usize..buffer.as_ptr() as usize + buffer.len();
    let frame = FrameDecoder::new(4096).decode(&mut buffer).unwrap().unwrap();
    assert!(memory.contains(&(frame.body.as_ptr() as usize)));
}

#[test]
fn a_frame_of_another_message_is_not_decoded() {
    let mut buffer = BytesMut::from(frame::request(&Ping {}, CorrelationId(1)).as_ref());
    let mut ping = FrameDecoder::new(64).decode(&mut buffer).unwrap().unwrap();
    assert_eq!(ping.clone().message::<Ping>(), Ok(Ping {}));
    let other = Err(DecodeError::OtherMessage { api: 2, version: 1 });
    assert_eq!(ping.clone().message::<Credit>(), other);
    ping.header.version = 2;
    assert_eq!(
        ping.message::<Ping>(),
        Err(DecodeError::OtherMessage { api: Api::Ping as u16, version: 2 })
    );
}

#[test]
fn framed_heads_are_the_same_bytes_as_whole_frames() {
    let publish = samples::publish(Compression::None);
    let head = publish.head.encode_framed(&publish.batch);
    assert_eq!([&head, publish.batch.body.as_ref()].concat(), frame::event(&publish));
    let deliver = samples::deliver();
    let head = deliver.head.encode_framed(deliver.entries.len());
    assert_eq!([&head, deliver.entries.as_ref()].concat(), frame::event(&deliver));
    let mut body = BytesMut::new();
    publish.encode(&mut body);
    assert_eq!(Publish::decode(body.freeze()), Ok(publish));
}

#[test]
fn helpers_set_flags_and_correlation() {
    let header = |bytes: Bytes| FrameHeader::decode(bytes.first_chunk().unwrap());
    let reply = header(frame::reply(&PingReply {}, CorrelationId(9)));
    assert_eq!((reply.flags, reply.correlation), (FLAG_REPLY, CorrelationId(9)));
    let credit = Credit { handle: SubscriptionHandle(1), messages: 1, bytes: 1 };
    assert_eq!(header(frame::event(&credit)).correlation, CorrelationId(0));
    let error = postrider_protocol::error::ErrorBody::new(
        postrider_protocol::error::ErrorCode::NotNegotiated,
        "send Hello first",
    );
    let refused = header(frame::connection_error(&error));
    assert_eq!((refused.api, refused.flags), (Hello::API as u16, FLAG_REPLY | FLAG_ERROR));
}
