"""What every test needs: CPU, and quick compilation (tests check values, not speed)."""

import importlib.metadata
import os

QUICK = ['--xla_backend_optimization_level=0', '--xla_llvm_disable_expensive_passes=true']
if importlib.metadata.version('jaxlib').startswith('0.10.'):  # later ones do not know it, and end the process over it
    QUICK.append('--xla_cpu_use_fusion_emitters=false')  # a training step compiles in a third of the time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *QUICK]).strip()
