//! Arguments of the kernels in `decode.cu`, in the layout that they have there. Pointers
//! are addresses on the device.

/// Arguments of the kernels `layer_*`; the layout of `LayerArguments` in
/// `decode.cu`. Pointers are addresses on the device.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerArguments {
    pub(crate) hidden_weights: u64,
    pub(crate) input_weights: u64,
    pub(crate) hidden_scales: u64,
    pub(crate) input_scales: u64,
    pub(crate) biases: u64,
    pub(crate) initial: u64,
    pub(crate) states: u64,
    pub(crate) table: u64,
    pub(crate) hidden: i32,
    pub(crate) layers: i32,
    pub(crate) bucket: i32,
    pub(crate) first_layer: i32,
    pub(crate) wave: i32,
    pub(crate) early: i32,
    pub(crate) history_rows: i32,
    pub(crate) history: u64,
}

/// Arguments of the kernels `prefill_*`; the layout of `PrefillArguments` in
/// `decode.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct PrefillArguments {
    pub(crate) layer: LayerArguments,
    pub(crate) exchange: u64,
    pub(crate) characters: i32,
    pub(crate) base: u32,
}

/// Arguments of the kernels `output_*`; the layout of `OutputArguments` in
/// `decode.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutputArguments {
    pub(crate) weights: u64,
    pub(crate) scales: u64,
    pub(crate) biases: u64,
    pub(crate) rows: u64,
    pub(crate) row_bytes: u64,
    pub(crate) table: u64,
    pub(crate) logits: u64,
    pub(crate) hidden: i32,
    pub(crate) vocabulary: i32,
}

/// Arguments of the kernel `copy_states`; the layout of `CopyArguments` in
/// `decode.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyArguments {
    pub(crate) states: u64,
    pub(crate) rows: u64,
    pub(crate) out: u64,
    pub(crate) bytes: i32,
}

/// Arguments of the kernel `top_logits`; the layout of `TopArguments` in
/// `decode.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct TopArguments {
    pub(crate) logits: u64,
    pub(crate) table: u64,
    pub(crate) log_sums: u64,
    pub(crate) ids: u64,
    pub(crate) top: u64,
    pub(crate) vocabulary: i32,
}
