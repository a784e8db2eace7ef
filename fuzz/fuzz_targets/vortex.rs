//! Whatever bytes a peer sends: the Vortex decoder neither panics nor asks for unbounded input, and what it accepts
//! it would have written just so.
#![no_main]

use bytes::BytesMut;
use damselfly_transport::vortex::{
    Answer, Decoded, MAX_ANSWER_LENGTH, REQUEST_LENGTH, Request, decode_answer,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(bytes) = bytes.first_chunk::<REQUEST_LENGTH>()
        && let Ok(request) = Request::decode(bytes)
    {
        assert_eq!(request.encode().as_ref(), Ok(bytes));
    }
    match decode_answer(bytes) {
        Ok(Decoded::Needs(more)) => assert!(more > bytes.len() && more <= MAX_ANSWER_LENGTH),
        Ok(Decoded::Complete { answer, consumed }) => {
            assert!(consumed <= bytes.len());
            assert!(
                matches!(decode_answer(&bytes[..consumed - 1]), Ok(Decoded::Needs(more)) if more <= consumed)
            );
            encode_again(answer, bytes[0]);
        }
        Err(_) => {}
    }
});

fn encode_again(answer: Answer, id: u8) {
    let mut out = BytesMut::new();
    match &answer {
        Answer::Content { kind, meta } => meta.encode(id, *kind, &mut out).expect("it fitted before"),
        // Replacement characters are longer than what they stand for, so the message may be cut.
        Answer::Error(packet) if packet.message.contains(char::REPLACEMENT_CHARACTER) => return,
        Answer::Error(packet) => packet.encode(id, &mut out),
    }
    let consumed = out.len();
    assert_eq!(decode_answer(&out), Ok(Decoded::Complete { answer, consumed }));
}
