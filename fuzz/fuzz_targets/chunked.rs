//! Chunked bodies: no split changes body, trailers or end, and what is framed anew reads the same. The
//! first byte chooses the split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outgate_proto::identify::chunked::{CHUNK_END, ChunkError, ChunkHeader, Decoded, Decoder, MAX_TRAILERS, Part};

fuzz_target!(|data: &[u8]| {
    let Some((choice, stream)) = data.split_first() else { return };
    let whole = decode(stream, stream.len().max(1));
    assert_eq!(decode(stream, usize::from(*choice) + 1), whole);
    let Ok(Some(Read { body, end, .. })) = whole else { return };
    assert!(end.len() <= MAX_TRAILERS * 2 + 8);
    // Written anew, a line may be a byte longer than it came.
    if end.len() > MAX_TRAILERS {
        return;
    }
    let mut framed = Vec::new();
    for part in body.chunks(usize::from(*choice) + 1) {
        framed.extend_from_slice(ChunkHeader::new(part.len()).as_ref());
        framed.extend_from_slice(part);
        framed.extend_from_slice(CHUNK_END);
    }
    framed.extend_from_slice(&end);
    let used = framed.len();
    framed.extend_from_slice(b"GET ");
    assert_eq!(decode(&framed, framed.len()), Ok(Some(Read { body, end, used })));
});

#[derive(Debug, PartialEq)]
struct Read {
    body: Vec<u8>,
    end: Vec<u8>,
    used: usize,
}

fn decode(stream: &[u8], size: usize) -> Result<Option<Read>, ChunkError> {
    let mut decoder = Decoder::new();
    let mut body = Vec::new();
    let mut used = 0;
    for piece in stream.chunks(size) {
        let mut input = piece;
        loop {
            let Decoded { consumed, part } = decoder.decode(input)?;
            used += consumed;
            match part {
                Part::Data(range) => {
                    assert!(!range.is_empty() && range.end <= consumed);
                    body.extend_from_slice(&input[range]);
                }
                Part::More => {
                    assert_eq!(consumed, input.len());
                    break;
                }
                Part::End => {
                    assert!(decoder.is_done());
                    let mut end = Vec::new();
                    decoder.write_end(&mut end);
                    return Ok(Some(Read { body, end, used }));
                }
            }
            input = &input[consumed..];
        }
    }
    Ok(None)
}
