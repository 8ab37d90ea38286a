"""The machine: the only place that knows QEMU (launch, attach, QMP, memory, vCPUs)."""
