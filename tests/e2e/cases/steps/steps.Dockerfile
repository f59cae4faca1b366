FROM busybox
COPY Dockerfile input.txt /context/

# heredocs
RUN <<EOF
set -e
echo one > /heredoc
echo two >> /heredoc
EOF
COPY <<"EOF" /etc/app.conf
literal = $NOT_EXPANDED
EOF
COPY <<-one.txt <<-two.txt /many/
	first file
one.txt
	second file
two.txt

# mounts
RUN --mount=type=cache,target=/cache,id=shared echo cached > /cache/value
RUN --mount=type=cache,target=/cache,id=shared cp /cache/value /from-cache
RUN --mount=type=tmpfs,target=/scratch \
    --mount=type=bind,source=input.txt,target=/input \
    echo gone > /scratch/file && cp /input /from-bind

# links and whiteouts
COPY tree /tree
RUN echo keep > /keep && echo drop > /drop && mkdir /full && touch /full/a /full/b
RUN rm /drop && rm -r /full && mkdir /full && touch /full/c \
    && ln -s /keep /link && ln /keep /hard && mkfifo /pipe && chmod 4755 /keep

# user, shell and configuration
RUN echo 'app:x:4321:4321::/home/app:/bin/sh' >> /etc/passwd \
    && mkdir -p /home/app/data && chown app /home/app/data
SHELL ["/bin/sh", "-eux", "-c"]
RUN echo "$-" > /shell-flags
USER app
WORKDIR /home/app/data
RUN id -u > uid && touch mine
ENV COLOUR=blue
EXPOSE 8080
LABEL org.example.case="user and shell"
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["id"]
