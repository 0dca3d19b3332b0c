"""Our gossip stack and serf, measured in the same way.

namespace   where it all happens, and what is done to packets there
cluster     what both sides have in common: processes, and notes of what they saw when
member      one of our members, as a process      ours    a mesh of them
rpc         serf's RPC protocol                    serf    a cluster of its agents
scenarios   what is done to a cluster              memory  where a process's memory goes
results     samples, and the table they come to
"""
