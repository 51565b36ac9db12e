//! Environment variables that decide how libtorch and NVIDIA's libraries compute.

use charlstm_model::device::GpuMath;

/// With these workspaces, cuBLAS gives the same bits in each run
/// (<https://docs.nvidia.com/cuda/cublas/#results-reproducibility>).
const WORKSPACES: &str = ":4096:8";

/// Returns the variables, by name and value, that must be set before the first use
/// of a GPU: they choose the arithmetic of products, and make trainings
/// deterministic.
pub fn variables(gpu_math: GpuMath) -> [(&'static str, &'static str); 2] {
    [
        ("CUBLAS_WORKSPACE_CONFIG", WORKSPACES),
        match gpu_math {
            // Forbids TF32 in cuDNN, too, where libtorch permits it by default.
            GpuMath::Float32 => ("NVIDIA_TF32_OVERRIDE", "0"),
            // Permits it in cuBLAS.
            GpuMath::Tf32 => ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1"),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tf32_is_forbidden_unless_it_is_chosen() {
        assert!(variables(GpuMath::Float32).contains(&("NVIDIA_TF32_OVERRIDE", "0")));
        let forbidden = variables(GpuMath::Tf32)
            .iter()
            .any(|(_, value)| *value == "0");
        assert!(!forbidden);
    }
}
