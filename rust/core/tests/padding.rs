//! Laws of padding.
#![allow(missing_docs, clippy::unwrap_used)]

use proptest::prelude::*;
use tokenwire_core::padding::{Side, pad};

proptest! {
    #[test]
    fn rows_come_back_between_their_padding(
        rows in prop::collection::vec(prop::collection::vec(0i64..1000, 0..9), 0..6),
        left: bool,
        multiple_of in 1i64..9,
    ) {
        let borrowed: Vec<&[i64]> = rows.iter().map(Vec::as_slice).collect();
        let side = if left { Side::Left } else { Side::Right };
        let padded = pad(&borrowed, 7, side, multiple_of).unwrap();
        let [count, width] = padded.shape;
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        prop_assert_eq!(count, rows.len());
        prop_assert_eq!(width, longest.next_multiple_of(usize::try_from(multiple_of).unwrap()));
        for (index, row) in rows.iter().enumerate() {
            let start = index * width + if left { width - row.len() } else { 0 };
            for column in index * width..(index + 1) * width {
                let token = column.checked_sub(start).and_then(|place| row.get(place).map(|&id| (place, id)));
                let got = (padded.input_ids[column], padded.attention_mask[column], padded.position_ids[column]);
                let expected = token.map_or((7, 0, 0), |(place, id)| (id, 1, i64::try_from(place).unwrap()));
                prop_assert_eq!(got, expected);
            }
        }
    }
}
