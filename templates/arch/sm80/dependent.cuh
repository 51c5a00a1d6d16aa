// Programmatic dependent launch: not there before sm_90, so a launch starts when the one before it has ended.

constexpr bool kHasDependentLaunch = false;

__device__ __forceinline__ void launch_dependents() {}
__device__ __forceinline__ void wait_for_dependency() {}
