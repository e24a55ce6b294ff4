"""A GLM of one small layer, to measure what running a model costs beside its operations."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from fedglm.inference.runtime.architecture import read_architecture
from fedglm.inference.runtime.graph_session import GraphSession

TINY: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "model_type": "glm",
        "architectures": ["GlmForCausalLM"],
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        "tie_word_embeddings": True,
    }
)
"""Its configuration."""

SKELETON: Final = """
c-
o~`!EW0|5G^g)rpB%<Z=6J7kia3DCRGAL1sb#v(84hqv?yvHoc7{FSxVeU6e*I{QnZ~@PrbAs;UDQY^j8Y>1KL?GNv%jpk!&5fv$L}^Z)Rs_N9q>Yct`
D?H*Ej&7>?k<FtDj-&|!z#W)!&8XT}9}di@A$jvtOA)3F&*lXaWgT2AR3-
&s+gj^IxPawa?#>OAX;j+oIhgo<S92cu!Cn(VX;D~hNeIf0KdT4Ao&PmkZ8puFWd?=8-3?nBkObXeoR?5A8SYt22_q#<*>z`y&~m%qQdRuuRV3d-
Pl0TZL%I};^*<J=5K!5{_I{)tpt#<|8n`o^&p9gjWu9{3bK`H+f^V=)3Knot-giPkHxZF?nLZW))$ak<mD+y%JYX<V*^%e^tKxQr|2xZ-JC@d8}&G_F{
}6;I*1RzQj&z$l2U(N((}u$*QHb~_B1!;vR>y2W?!)d*F}6MgqI+4CkzRLAc%32ZrjL`NRAVrn;%bgDzm9}mqwwQSZ{<D7@EFN~Qq+iBX)uu;dw6r#H_
L|2CB-U6cXL5P1VAcp~DgCNBmszZyp0HMVqJTI4CA#6d%mN%wkvt<mOOKOvk!x3eeEJBLxPNs>VmI>;$*I80=&<-=Z)|gqI0DT9x-
PkO6g8rVHg#*}yb=I{!diUSzt8e)Iegm0>1&JDz6E)z88sv%kQYu<}fhS{f3v7{$87-3WkL08?9vB6~c)*dF-=T83QxUNj@<NwWw<&R_kgF-hfU|pey5
=}6#Guy77PJYO$Kw<xOtK+JQf(P1ozC?2x1r}mb711x@skV25f*%LcJKl+McZOD*oDLT+SCly@&SdX*pS%fY1d0`N=E1vQD(Av>BZpzu!9S~;5{PYTrC
}Qzn@JVY`RL;F(by2CWfp|*1VwSL<|oac5>3NE-
52>ley#DPM0#R%+hN=`|Ny7>3fP<EObLzjI85LM32RwtKykG`4%$)I#$%}^V=<M3{VhKuqUD*C*200pq_NRO~QQ*sS<cNw_V^d7QSfdn8lb>u-
j<9R1a0Pt{h2Ka&Qk+FX$#<h{O+-k~G%QnbOEd=^s$~5T)lgGlQqn=J{f%>(@lna(&F;b4lxRThKy3MZ0ugGWbF=v-
B>s^h;uAspe(Sl58xsBlYB9p(pN*JaK1ua<I@7cV$o96+MY><Vn1;C-KUj#3fG_XIF3|PlA#sqr}dNZ{eUVSzB>0+H}yn-
;^2d&3*S4x;J+hn(Cy1T<(EcSPEuuK^yl~rM}r#){Y7fO7pA4bh)Yz9!X}(%c$}sg}ta!51vU{772#R*(3RXU>$bUO#)CMN{4^g*+HSbElWHRy(M`7_t
hG?!<j=^Q<Y?ue<E%p_rIjUJ^NJdOGyLnsR|)tJ=GH;ad7s$(6i2!>^z3_jUxL%P-bUh4c8AlpFyF`ouw*DRK0*=3p`)=s0ts|8~+0`Fz-|
"""
"""Its graph without weights, of `fedglm.autoglm.light.graph.model.build_skeleton`, in base 85: a device has no ``onnx``
to write it."""


def open_tiny_model(threads: int) -> GraphSession:
    """Open the model, with weights of no meaning."""
    shapes = read_architecture(TINY).tensor_shapes()
    tensors = {name: np.full(shape, 0.01, np.float32) for name, shape in shapes.items()}
    skeleton = base64.b85decode("".join(SKELETON.split()))
    return GraphSession.open(skeleton, tensors, TINY, threads=threads)
